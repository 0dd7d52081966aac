#pragma once

// Param: a named weight. `value` views memory that the Model owns (a mapped checkpoint or a packed buffer).

#include "elapid/core/tensor.h"

#include <string>

namespace elapid {

// How a matrix lies in memory.
enum class Packing : uint8_t {
  rows,   // as in the checkpoint: [out, in], dense, possibly unaligned
  tiles,  // as ops/matmul wants it, see pack_weight() there; shape stays [out, in]
};

struct Param {
  std::string name;
  Tensor value;
  Packing packing = Packing::rows;

  explicit operator bool() const { return static_cast<bool>(value); }
};

}  // namespace elapid
