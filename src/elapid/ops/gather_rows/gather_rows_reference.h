#pragma once

// gather_rows.h in float64: y[r] = x[rows[r]], exactly.

#include "elapid/ops/float64_reference.h"

namespace elapid::reference {

struct GatherRowsInputs {
  Matrix x;  // [T, d]
  std::vector<int64_t> rows;
};

inline Expected gather_rows(const GatherRowsInputs& in) {
  Expected y(static_cast<int64_t>(in.rows.size()), in.x.cols);
  for (int64_t r = 0; r < y.value.rows; ++r) {
    for (int64_t c = 0; c < in.x.cols; ++c) y.value(r, c) = in.x(in.rows[static_cast<size_t>(r)], c);
  }
  return y;
}

}  // namespace elapid::reference
