#pragma once

// Pass: what one forward call carries through all blocks.

#include "elapid/core/batch.h"
#include "elapid/state/pool.h"

#include <functional>

namespace elapid {

struct Pass {
  const Batch& batch;
  StatePool* states = nullptr;  // null: every slot is kNoSlot
  // Sees the residual stream [T, d_model] after the embedding (layer 0) and after layer n (n + 1). The tensor is valid
  // during the call only.
  const std::function<void(int64_t layer, const Tensor& residual)>* observe = nullptr;

  // Entry i of the state for all slots, empty without a pool.
  [[nodiscard]] Tensor state(int64_t entry) const { return states == nullptr ? Tensor() : states->entry(entry); }
};

}  // namespace elapid
