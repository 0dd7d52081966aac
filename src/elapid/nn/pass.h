#pragma once

// Pass: what one forward call carries through all blocks.

#include "elapid/core/batch.h"
#include "elapid/state/pool.h"

#include <functional>

namespace elapid {

// Looks into a forward call. Every member may be empty; tensors are valid during the call only.
struct Observer {
  // The residual stream [T, d_model] after the embedding (layer 0) and after layer n (n + 1).
  std::function<void(int64_t layer, const Tensor& residual)> residual;
  // What the router of layer n's experts said, [T, experts], before any softmax.
  std::function<void(int64_t layer, const Tensor& logits)> router_logits;
  // Layer n's attention weights for sequence s of the batch: [heads, tokens, past + tokens]. Computed only when asked
  // for.
  std::function<void(int64_t layer, int64_t sequence, const Tensor& weights)> attentions;
};

struct Pass {
  const Batch& batch;
  StatePool* states = nullptr;  // null: every slot is kNoSlot
  const Observer* observer = nullptr;

  // Entry i of the state for all slots, empty without a pool.
  [[nodiscard]] Tensor state(int64_t entry) const { return states == nullptr ? Tensor() : states->entry(entry); }
  // Of the entries per token, likewise; and what kernels on a device read of it.
  [[nodiscard]] Tensor page_table() const { return states == nullptr ? Tensor() : states->page_table(); }
  [[nodiscard]] Tensor uploaded_table() const { return states == nullptr ? Tensor() : states->uploaded_table(); }
};

}  // namespace elapid
