#pragma once

// y[r] = x[rows[r]]

#include "elapid/core/kernel.h"

namespace elapid {

// x [T, d] f32, on CUDA also bf16; rows [R] i64, increasing, in host memory; `uploaded`: the same on a device, or
// empty. Returns [R, d] of x's type: x itself when that is what all rows in order are.
Tensor gather_rows(Context& ctx, const Tensor& x, const Tensor& rows, const Tensor& uploaded = {});

struct GatherRowsForward {
  Tensor x, rows, y;
};
ELAPID_KERNEL(GatherRowsForward)
ELAPID_CUDA_KERNEL(GatherRowsForward)

}  // namespace elapid
