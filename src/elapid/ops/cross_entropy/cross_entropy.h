#pragma once

// nll[r] = ln Σ_v exp(logits[r, v]) − logits[r, labels[r]], in float32 with the row's maximum subtracted; 0 where the
// label is kIgnoreLabel.

#include "elapid/core/kernel.h"

namespace elapid {

inline constexpr int64_t kIgnoreLabel = -100;

// logits [rows, vocab] f32; labels [rows] i64, in host memory. Returns [rows] f32. An Error when a label lies outside
// the vocabulary.
Tensor cross_entropy(Context& ctx, const Tensor& logits, const Tensor& labels);

struct CrossEntropyForward {
  Tensor logits, labels, nll;
};
ELAPID_KERNEL(CrossEntropyForward)
ELAPID_CUDA_KERNEL(CrossEntropyForward)

}  // namespace elapid
