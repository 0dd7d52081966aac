#pragma once

// Elements of any floating-point type, at any alignment → float, exactly.

#include "elapid/core/dtype.h"
#include "elapid/core/error.h"

#include <cstring>

namespace elapid {

// `n` elements of `dtype`, which must be f32, bf16 or f16.
inline void widen(const void* from, DType dtype, int64_t n, float* to) {
  const auto read = [&]<class T>(T value) {
    for (int64_t i = 0; i < n; ++i) {
      std::memcpy(&value, static_cast<const char*>(from) + i * int64_t{sizeof value}, sizeof value);
      to[i] = to_float(value);
    }
  };
  switch (dtype) {
    case DType::f32: return read(float{});
    case DType::bf16: return read(BFloat16{});
    case DType::f16: return read(Float16{});
    default: fail(concat("widen: elements must be f32, bf16 or f16, got ", name_of(dtype)));
  }
}

}  // namespace elapid
