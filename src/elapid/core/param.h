#pragma once

// Param: a named weight. `value` views memory that the Model owns (a mapped checkpoint or a packed buffer).

#include "elapid/core/tensor.h"

#include <string>

namespace elapid {

// How a matrix lies in memory.
enum class Packing : uint8_t {
  rows,   // as in the checkpoint: [out, in], dense, possibly unaligned
  tiles,  // as ops/matmul wants it, see pack_weight() there; shape stays [out, in]
  int8,   // quantized, see ops/matmul/quantized.h; likewise, dtype u8
  int4,
};

// What the operands of a product are rounded to, inputs and weights; sums are float32 either way.
enum class Arithmetic : uint8_t { f32, bf16 };

struct Param {
  std::string name;
  Tensor value;
  Packing packing = Packing::rows;
  Arithmetic arithmetic = Arithmetic::f32;

  explicit operator bool() const { return static_cast<bool>(value); }
};

}  // namespace elapid
