#pragma once

// embedding.h in float64: y[t] = scale · table[tokens[t]].

#include "elapid/ops/float64_reference.h"

namespace elapid::reference {

struct EmbeddingInputs {
  std::vector<int64_t> tokens;
  Matrix table;  // [vocab, d_model]
  double scale = 1;
};

inline Expected embedding(const EmbeddingInputs& in) {
  const auto tokens = static_cast<int64_t>(in.tokens.size());
  Expected y(tokens, in.table.cols);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t c = 0; c < in.table.cols; ++c) {
      const double value = in.scale * in.table(in.tokens[static_cast<size_t>(t)], c);
      y.value(t, c) = value;
      y.tolerance(t, c) = kRounding * std::abs(value) + kUnderflow;
    }
  }
  return y;
}

}  // namespace elapid::reference
