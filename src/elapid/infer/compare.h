#pragma once

// How far one model's predictions are from another's over a text: what rounding weights costs.

#include "elapid/infer/engine.h"

#include <functional>
#include <span>

namespace elapid {

// Means over every id of the text that has a successor.
struct Comparison {
  int64_t tokens = 0;
  double nll = 0, other_nll = 0;  // of the successors, nats
  double divergence = 0;          // Kullback-Leibler, from the first model's distribution to the other's, nats
};

// `ids` are at least two. Both engines take one slot and hand out logits in pieces of the first one's chunk, which is
// what memory grows with. progress(ids done) may be empty.
Comparison compare(Engine& original, Engine& other, std::span<const TokenId> ids,
                   const std::function<void(int64_t)>& progress = {});

}  // namespace elapid
