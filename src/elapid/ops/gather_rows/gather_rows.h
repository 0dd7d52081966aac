#pragma once

// y[r] = x[rows[r]]

#include "elapid/core/kernel.h"

namespace elapid {

// x [T, d] f32; rows [R] i64, increasing. Returns [R, d] f32: x itself when that is what all rows in order are.
Tensor gather_rows(Context& ctx, const Tensor& x, const Tensor& rows);

struct GatherRowsForward {
  Tensor x, rows, y;
};
ELAPID_KERNEL(GatherRowsForward)

}  // namespace elapid
