#pragma once

// What the kernels of products share. Only *_cpu.cc and *_amx.cc files include this header; as cpu/simd.h, all of it
// has internal linkage.

#include "elapid/cpu/simd.h"
#include "elapid/ops/matmul/matmul.h"

namespace elapid {
namespace {

// What comes after the sums of row r for one block of outputs: bias, alpha, add. Args is MatmulForward or one like it.
template <class Args>
ELAPID_INLINE void finish_row(const Args& a, int64_t r, int64_t block, const F32& sums) {
  const int64_t column = block * kPackBlock, n = a.y.cols() - column;
  const F32 bias = a.bias ? load(a.bias.template ptr<float>() + column, n) : zero();
  F32 y = broadcast(a.alpha) * (sums + bias);
  if (a.add) y = y + load(a.add.template row<float>(r) + column, n);
  store(a.y.template row<float>(r) + column, y, n);
}

// x rounded to bf16, as floats, with `columns` ≥ x's of which those beyond x's own are zero; in `room`.
ELAPID_INLINE Tensor rounded_floats(Cpu cpu, const Tensor& x, int64_t columns, const Tensor& room) {
  const Tensor rounded(room.data, DType::f32, {x.rows(), columns});
  parallel_for(cpu.threads, x.rows(), (int64_t{1} << 15) / columns + 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t c = 0; c < columns; c += kLanes) {
        const int64_t n = x.cols() - c, width = columns - c;
        store(rounded.row<float>(r) + c, round_to_bf16(load(x.row<float>(r) + c, n > 0 ? n : 0)), width);
      }
    }
  });
  return rounded;
}

}  // namespace
}  // namespace elapid
