#pragma once

// gcc 12 takes the operand of _tile_loadconfig() for 8 bytes long and drops what a function stores into the other 56,
// so that llama.cpp's tiles have no rows and their first use is an illegal instruction. CMakeLists.txt has this
// included ahead of its AMX kernels.

#if defined(__AMX_TILE__)
#include <immintrin.h>
#define _tile_loadconfig(config) \
  __asm__ volatile("ldtilecfg %0" : : "m"(*reinterpret_cast<const char(*)[64]>(config)) : "memory")
#endif
