#pragma once

// cross_entropy.h in float64: nll[r] = ln Σ_v exp(logits[r, v]) − logits[r, labels[r]]; 0 where the label is ignored.

#include "elapid/ops/cross_entropy/cross_entropy.h"
#include "elapid/ops/float64_reference.h"

namespace elapid::reference {

struct CrossEntropyInputs {
  Matrix logits;  // [rows, vocab]
  std::vector<int64_t> labels;
};

inline Expected cross_entropy(const CrossEntropyInputs& in) {
  const int64_t rows = in.logits.rows, vocab = in.logits.cols;
  Expected nll(rows, 1);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t label = in.labels[static_cast<size_t>(r)];
    if (label == kIgnoreLabel) continue;
    double top = in.logits(r, 0);
    for (int64_t v = 1; v < vocab; ++v) top = std::max(top, in.logits(r, v));
    // The difference from the maximum is rounded before exp, which turns its absolute error into a relative one.
    double total = 0, total_error = 0;
    for (int64_t v = 0; v < vocab; ++v) {
      const double below = top - in.logits(r, v), term = std::exp(-below);
      total += term;
      if (term > 0) total_error += term * (below + kExpError);
    }
    // Sixteen partial sums, then four levels of pairs.
    const double relative = total_error / total + roundings((vocab + 15) / 16 + 4);
    const double distance = top - in.logits(r, label), log_total = std::log(total);
    nll.value(r, 0) = log_total + distance;
    nll.tolerance(r, 0) = kRounding * (relative + kLogError * log_total + distance + nll.value(r, 0)) + kUnderflow;
  }
  return nll;
}

}  // namespace elapid::reference
