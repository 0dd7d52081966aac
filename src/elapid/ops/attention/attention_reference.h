#pragma once

// attention.h in float64: y[t, h] = Σ_j w[j] · v[j, g], w = softmax_j(scale · q[t, h] · k[j, g]), j = 0 … past + t.
//
// The tolerance counts the errors of each score, which the exponential turns into relative errors of a weight; those of
// the exponentials; and the roundings of two sums, within a block of keys and over blocks.

#include "elapid/core/batch.h"
#include "elapid/ops/float64_reference.h"

namespace elapid::reference {

struct AttentionInputs {
  Matrix q;                                 // [T, heads · head_dim]
  Matrix k, v;                              // [T, kv_heads · head_dim]
  Matrix keys, values;                      // [pages · kPageTokens, kv_heads · head_dim], or empty
  std::vector<std::vector<int64_t>> pages;  // of each slot
  int64_t heads = 1, kv_heads = 1;
  double scale = 1;
  bool bf16 = false;  // weights may be rounded to bf16 before they multiply values
};

struct AttentionExpected {
  Expected y;             // [T, heads · head_dim]
  Expected keys, values;  // the pages afterwards; exact
  Expected weights;       // [heads · tokens, past + tokens] of the one sequence that was asked for
};

inline AttentionExpected attention(const AttentionInputs& in, const Sequences& sequences, int64_t weights_of = -1) {
  const int64_t head_dim = in.q.cols / in.heads, width = in.k.cols, group = in.heads / in.kv_heads;
  AttentionExpected out{{in.q.rows, in.q.cols}, {in.keys.rows, width}, {in.values.rows, width}, {}};
  out.keys.value = in.keys;
  out.values.value = in.values;
  for (int64_t s = 0; s < sequences.count(); ++s) {
    const int64_t begin = sequences.begin(s), length = sequences.end(s) - begin, past = sequences.past_of(s);
    const auto page_row = [&](int64_t position) {
      return in.pages[static_cast<size_t>(sequences.slot(s))][static_cast<size_t>(position / kPageTokens)] *
                 kPageTokens +
             position % kPageTokens;
    };
    for (int64_t t = 0; sequences.slot(s) >= 0 && t < length; ++t) {
      for (int64_t c = 0; c < width; ++c) {
        out.keys.value(page_row(past + t), c) = in.k(begin + t, c);
        out.values.value(page_row(past + t), c) = in.v(begin + t, c);
      }
    }
    const auto element = [&](const Matrix& fresh, const Matrix& kept, int64_t position, int64_t column) {
      return position < past ? kept(page_row(position), column) : fresh(begin + position - past, column);
    };
    if (s == weights_of) out.weights = Expected(in.heads * length, past + length);
    for (int64_t h = 0; h < in.heads; ++h) {
      const int64_t from = h / group * head_dim;
      for (int64_t t = 0; t < length; ++t) {
        const int64_t keys = past + t + 1, blocks = (keys + kPageTokens - 1) / kPageTokens;
        std::vector<double> scores(static_cast<size_t>(keys)), errors(scores.size());
        std::vector<double> most(static_cast<size_t>(blocks), -std::numeric_limits<double>::infinity());
        double largest = most[0], largest_error = 0;
        for (int64_t j = 0; j < keys; ++j) {
          double sum = 0, terms = 0;
          for (int64_t d = 0; d < head_dim; ++d) {
            const double term = in.scale * in.q(begin + t, h * head_dim + d) * element(in.k, in.keys, j, from + d);
            sum += term;
            terms += std::abs(term);
          }
          const auto at = static_cast<size_t>(j), block = static_cast<size_t>(j / kPageTokens);
          scores[at] = sum;
          // Scaling, a product and a place in the sum for every term.
          errors[at] = kRounding * (2 + roundings(head_dim)) * terms + static_cast<double>(head_dim + 1) * kUnderflow;
          most[block] = std::max(most[block], sum);
          largest = std::max(largest, sum);
          largest_error = std::max(largest_error, errors[at]);
        }
        double total = 0, total_error = 0;
        std::vector<double> weights(scores.size()), weight_errors(scores.size());
        for (int64_t b = 0; b < blocks; ++b) {
          // Merges that rescale: those with a block which may raise the largest score so far, or lie below it.
          double running = most[0], rescaled = 0;
          for (int64_t other = 1; other < blocks; ++other) {
            const double m = most[static_cast<size_t>(other)];
            if (other == b || (other > b && m >= running - 2 * largest_error)) rescaled += 1;
            running = std::max(running, m);
          }
          const int64_t end = std::min(keys, (b + 1) * kPageTokens);
          const double own = most[static_cast<size_t>(b)];
          for (int64_t j = b * kPageTokens; j < end; ++j) {
            const auto at = static_cast<size_t>(j);
            weights[at] = std::exp(scores[at] - largest);
            // Differences of scores are rounded; each exponential, its product and its sum, too.
            const double relative = errors[at] + kRounding * ((own - scores[at]) + (largest - own) + kExpError +
                                                              rescaled * (kExpError + 2) +
                                                              roundings(std::min(keys, kPageTokens) + blocks) + 1);
            weight_errors[at] = weights[at] * (relative + (in.bf16 ? kBf16Rounding : 0)) + 4 * kUnderflow;
            total += weights[at];
            total_error += weight_errors[at];
          }
        }
        for (int64_t d = 0; d < head_dim; ++d) {
          double sum = 0, error = 0;
          for (int64_t j = 0; j < keys; ++j) {
            const double v = element(in.v, in.values, j, from + d);
            sum += weights[static_cast<size_t>(j)] * v;
            error += weight_errors[static_cast<size_t>(j)] * std::abs(v) + kUnderflow;
          }
          const double value = sum / total;
          out.y.value(begin + t, h * head_dim + d) = value;
          out.y.tolerance(begin + t, h * head_dim + d) =
              (error + std::abs(value) * total_error) / total + kRounding * std::abs(value) + kUnderflow;
        }
        for (int64_t j = 0; s == weights_of && j < keys; ++j) {
          const double weight = weights[static_cast<size_t>(j)] / total;
          out.weights.value(h * length + t, j) = weight;
          // Two sums of sixteen lanes' shares.
          out.weights.tolerance(h * length + t, j) =
              (weight_errors[static_cast<size_t>(j)] + weight * total_error) / total +
              kRounding * (1 + roundings(keys)) * weight + kUnderflow;
        }
      }
    }
  }
  return out;
}

}  // namespace elapid::reference
