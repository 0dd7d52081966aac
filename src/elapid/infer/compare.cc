#include "elapid/infer/compare.h"

#include "elapid/core/error.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace elapid {
namespace {

// log Σ exp(x)
double log_sum(const float* x, int64_t n) {
  const double largest = *std::max_element(x, x + n);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(double{x[i]} - largest);
  return largest + std::log(sum);
}

struct Row {
  double nll, other_nll, divergence;
};

Row compare_row(const float* x, const float* y, int64_t n, TokenId next) {
  const double of_x = log_sum(x, n), of_y = log_sum(y, n);
  double divergence = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double log_p = double{x[i]} - of_x, log_q = double{y[i]} - of_y, p = std::exp(log_p);
    if (p > 0) divergence += p * (log_p - log_q);
  }
  return {of_x - double{x[next]}, of_y - double{y[next]}, divergence};
}

}  // namespace

Comparison compare(Engine& original, Engine& other, std::span<const TokenId> ids,
                   const std::function<void(int64_t)>& progress) {
  const int64_t vocab = original.model().config().vocab;
  require(other.model().config().vocab == vocab, "compare: both models must have ", vocab, " rows of logits, got ",
          other.model().config().vocab);
  require(ids.size() >= 2, "compare: the text must have at least two tokens, got ", ids.size());
  for (const TokenId id : ids) {
    require(id >= 0 && id < vocab, "compare: token ids must be 0 to ", vocab - 1, ", got ", id);
  }
  const Slot slot = original.states().acquire(), other_slot = other.states().acquire();
  const auto chunk = static_cast<size_t>(original.options().chunk);
  std::vector<float> logits(std::min(chunk, ids.size()) * static_cast<size_t>(vocab));
  std::vector<Row> rows;
  Comparison sum;
  for (size_t at = 0; at + 1 < ids.size(); at += chunk) {
    const std::span<const TokenId> piece = ids.subspan(at, std::min(chunk, ids.size() - 1 - at));
    const Input input{.tokens = piece, .slot = slot.index()}, other_input{.tokens = piece, .slot = other_slot.index()};
    original.all_logits({&input, 1}, {.rows = [&](const Piece& p, const Tensor&, const Tensor& x) {
                          std::copy_n(x.ptr<float>(), x.size(), logits.data() + p.first * vocab);
                        }});
    rows.resize(piece.size());
    other.all_logits({&other_input, 1}, {.rows = [&](const Piece& p, const Tensor&, const Tensor& y) {
                       parallel_for(other.context().threads, p.count, 1, [&](int64_t begin, int64_t end, int) {
                         for (int64_t r = begin; r < end; ++r) {
                           const int64_t row = p.first + r;
                           rows[static_cast<size_t>(row)] = compare_row(logits.data() + row * vocab, y.row<float>(r),
                                                                        vocab, ids[at + static_cast<size_t>(row) + 1]);
                         }
                       });
                     }});
    for (const Row& row : rows) {
      sum.nll += row.nll;
      sum.other_nll += row.other_nll;
      sum.divergence += row.divergence;
    }
    sum.tokens += static_cast<int64_t>(piece.size());
    if (progress) progress(sum.tokens);
  }
  const auto n = static_cast<double>(sum.tokens);
  return {sum.tokens, sum.nll / n, sum.other_nll / n, sum.divergence / n};
}

}  // namespace elapid
