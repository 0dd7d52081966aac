#pragma once

// grouped_matmul.h in float64: y[r] = x[r] · W_gᵀ for the rows r of group g.

#include "elapid/ops/matmul/matmul_reference.h"

namespace elapid::reference {

struct GroupedMatmulInputs {
  Matrix x;                      // [rows, in]
  std::vector<Matrix> weights;   // of each group, [out, in]
  std::vector<int64_t> offsets;  // [groups + 1]
};

inline Expected grouped_matmul(const GroupedMatmulInputs& in) {
  const int64_t out = in.weights.front().rows, depth = in.x.cols;
  Expected y(in.x.rows, out);
  for (size_t g = 0; g < in.weights.size(); ++g) {
    const int64_t begin = in.offsets[g], rows = in.offsets[g + 1] - begin;
    MatmulInputs group{Matrix(rows, depth), in.weights[g], {}, {}, 1};
    std::copy_n(in.x.values.begin() + begin * depth, rows * depth, group.x.values.begin());
    const Expected part = matmul(group);
    std::copy_n(part.value.values.begin(), rows * out, y.value.values.begin() + begin * out);
    std::copy_n(part.tolerance.values.begin(), rows * out, y.tolerance.values.begin() + begin * out);
  }
  return y;
}

}  // namespace elapid::reference
