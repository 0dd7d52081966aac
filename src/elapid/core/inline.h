#pragma once

// ELAPID_INLINE marks every function that a kernel translation unit may use. Such units are compiled once per
// instruction set; a function that is merely `inline` could leave a weak symbol compiled for AVX-512 that the linker
// then picks for everybody. Always-inline functions leave no symbol at any optimization level;
// tools/check_isa_symbols.py checks it.

#define ELAPID_INLINE [[gnu::always_inline]] inline
