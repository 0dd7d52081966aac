#pragma once

// Weights for the tests of products.

#include "elapid/ops/matmul/matmul.h"
#include "tests/ops/harness.h"

namespace elapid::testing {

// `rows` in packed order, in memory of the workbench.
inline Param packed(Workbench& bench, const Tensor& rows, Arithmetic arithmetic = Arithmetic::f32) {
  const DType dtype = arithmetic == Arithmetic::bf16 ? DType::bf16 : rows.dtype;
  const Tensor memory = bench.output(1, packed_bytes(rows.shape, dtype) / 4, false);
  return {"weight", pack_weight(threads(1), {&rows, 1}, dtype, memory.data), Packing::tiles, arithmetic};
}

inline reference::Matrix rounded_to_bf16(reference::Matrix m) {
  for (double& value : m.values) value = double{to_float(to_bf16(static_cast<float>(value)))};
  return m;
}

}  // namespace elapid::testing
