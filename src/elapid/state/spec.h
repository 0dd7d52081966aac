#pragma once

// What one sequence must remember between calls, block by block. Bodies declare their entries when the model is built;
// pools and snapshots follow from them.

#include "elapid/core/tensor.h"

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace elapid {

// One fixed-size float32 memory of one layer, for instance {"ssm", 3, {heads, head_dim, d_state}}.
struct StateEntry {
  std::string kind;
  int64_t layer = 0;
  Shape shape;

  bool operator==(const StateEntry& other) const = default;
};

struct StateSpec {
  std::vector<StateEntry> entries;
  // Identifies config and weights of the model, as hexadecimal text. Computed when a state meets a file, not before:
  // it reads all weights once.
  std::function<std::string()> fingerprint;

  // Bytes that one sequence needs.
  [[nodiscard]] int64_t bytes_per_sequence() const {
    int64_t bytes = 0;
    for (const StateEntry& e : entries) bytes += e.shape.size() * size_of(DType::f32);
    return bytes;
  }
};

}  // namespace elapid
