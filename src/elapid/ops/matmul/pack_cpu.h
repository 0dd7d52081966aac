#pragma once

// What the kernels that pack share; as cpu/simd.h, all of it has internal linkage.

#include "elapid/cpu/simd.h"
#include "elapid/ops/matmul/pack.h"

namespace elapid {
namespace {

// Sixteen elements of any alignment as floats, exactly.
ELAPID_INLINE F32 load_elements(const char* p, DType dtype) {
  switch (dtype) {
    case DType::f32: return load(reinterpret_cast<const float*>(p));
    case DType::bf16:
      return by_part(
          [&](auto i) ELAPID_LAMBDA { return part_load_bf16(reinterpret_cast<const uint16_t*>(p) + i * kPartLanes); });
    default:
      return by_part(
          [&](auto i) ELAPID_LAMBDA { return part_load_half(reinterpret_cast<const uint16_t*>(p) + i * kPartLanes); });
  }
}

// Inputs [first, first + columns) of a block's rows as floats, transposed: to[k][row], zero beyond `in`. `columns` is a
// multiple of sixteen.
template <int64_t columns>
ELAPID_INLINE void load_block(const char* const* rows, DType dtype, int64_t first, int64_t in,
                              float (&to)[columns][kPackBlock]) {
  const int64_t element = size_of(dtype), n = in - first < columns ? in - first : columns;
  alignas(64) float values[kPackBlock][columns];
  for (int64_t r = 0; r < kPackBlock; ++r) {
    const char* from = rows[r] + first * element;
    for (int64_t k = 0; k < columns; k += kLanes) {
      if (k + kLanes <= n) {
        store(&values[r][k], load_elements(from + k * element, dtype));
      } else {
        alignas(64) char rest[kLanes * 4] = {};
        if (k < n) __builtin_memcpy(rest, from + k * element, static_cast<size_t>((n - k) * element));
        store(&values[r][k], load_elements(rest, dtype));
      }
    }
  }
  for (int64_t k = 0; k < columns; k += 4) {
    F32 transposed[4];
    load_transposed([&](int64_t r) ELAPID_LAMBDA { return &values[r][k]; }, transposed);
    static_for<4>([&](auto j) ELAPID_LAMBDA { store(to[k + j], transposed[j]); });
  }
}

}  // namespace
}  // namespace elapid
