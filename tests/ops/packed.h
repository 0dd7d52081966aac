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

// The same as rows in f32 or bf16, as a device's memory has them.
inline Param unpacked(Workbench& bench, const Tensor& rows, Arithmetic arithmetic = Arithmetic::f32) {
  const bool narrow = arithmetic == Arithmetic::bf16 || rows.dtype == DType::bf16;
  const Tensor t = bench.tensor(rows.shape, {0, 0}, narrow ? DType::bf16 : DType::f32);
  const reference::Matrix values = reference::matrix_of(rows);
  for (int64_t i = 0; i < rows.size(); ++i) {
    const auto value = static_cast<float>(values[i]);
    if (narrow) {
      t.ptr<BFloat16>()[i] = to_bf16(value);
    } else {
      t.ptr<float>()[i] = value;
    }
  }
  return {"weight", t, Packing::rows, arithmetic};
}

inline reference::Matrix rounded_to_bf16(reference::Matrix m) {
  for (double& value : m.values) value = double{to_float(to_bf16(static_cast<float>(value)))};
  return m;
}

}  // namespace elapid::testing
