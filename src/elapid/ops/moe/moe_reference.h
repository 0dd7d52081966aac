#pragma once

// moe.h and aux_loss.h in float64.

#include "elapid/ops/float64_reference.h"
#include "elapid/ops/moe/moe.h"

#include <numeric>

namespace elapid::reference {

// The k largest, best first, of equals the first.
inline std::vector<int64_t> top_k(const std::vector<double>& keys, int64_t k) {
  std::vector<int64_t> order(keys.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return keys[static_cast<size_t>(a)] > keys[static_cast<size_t>(b)]; });
  order.resize(static_cast<size_t>(k));
  return order;
}

struct RouteInputs {
  Matrix logits;           // [T, experts]
  Matrix correction_bias;  // [experts], or empty
  Router router;
};

struct RouteExpected {
  Expected experts, weights;       // [T, top_k]
  Expected offsets, tokens, rows;  // [experts + 1], [T · top_k], [T, top_k]
};

// softmax(l)[chosen] over the logits `among`.
inline std::vector<Approximate> softmax(const std::vector<double>& among, const std::vector<double>& chosen) {
  const double top = *std::max_element(among.begin(), among.end());
  // The difference from the maximum is rounded before exp, which turns its absolute error into a relative one.
  const auto exponential = [&](double l) {
    return Approximate{std::exp(l - top), std::exp(l - top) * (top - l + kExpError)};
  };
  double total = 0, total_error = 0;
  for (const double l : among) {
    const Approximate e = exponential(l);
    total += e.value;
    if (e.value > 0) total_error += e.error;
  }
  const auto n = static_cast<int64_t>(among.size());
  const double relative = total_error / total + roundings((n + 15) / 16 + 4);  // sixteen partial sums, pairs of them
  std::vector<Approximate> w;
  for (const double l : chosen) {
    const Approximate e = exponential(l);
    const double value = e.value / total;
    w.push_back({value, kRounding * ((e.value > 0 ? e.error / total : 0) + value * (relative + 1)) + 2 * kUnderflow});
  }
  return w;
}

inline RouteExpected route(const RouteInputs& in) {
  const Router& router = in.router;
  const int64_t tokens = in.logits.rows, experts = in.logits.cols, k = router.top_k, width = experts / router.groups;
  RouteExpected r{{tokens, k}, {tokens, k}, {experts + 1, 1}, {tokens * k, 1}, {tokens, k}};
  for (int64_t t = 0; t < tokens; ++t) {
    const auto first = in.logits.values.begin() + t * experts;
    const std::vector<double> logits(first, first + experts);
    std::vector<int64_t> chosen;
    std::vector<Approximate> w;
    if (router.routing == Routing::sigmoid_groups) {
      std::vector<double> scores, keys, group_keys;
      for (int64_t e = 0; e < experts; ++e) {
        scores.push_back(1 / (1 + std::exp(-logits[static_cast<size_t>(e)])));
        keys.push_back(scores.back() + (in.correction_bias ? in.correction_bias[e] : 0));
      }
      for (int64_t g = 0; g < router.groups; ++g) {
        std::vector<double> group(keys.begin() + g * width, keys.begin() + (g + 1) * width);
        std::sort(group.begin(), group.end());
        group_keys.push_back(group.end()[-1] + group.end()[-2]);
      }
      std::vector<double> allowed(keys.size(), -std::numeric_limits<double>::infinity());
      for (const int64_t g : top_k(group_keys, router.top_groups)) {
        std::copy_n(keys.begin() + g * width, width, allowed.begin() + g * width);
      }
      chosen = top_k(allowed, k);
      double total = 0, total_error = 0;
      for (const int64_t e : chosen) {
        // 1 / (1 + e⁻ˡ): exp's part of the sum, the sum and the quotient.
        const double s = scores[static_cast<size_t>(e)], error = kRounding * ((1 - s) * kExpError + 2) * s;
        w.push_back({s, error + kUnderflow});
        total += s;
        total_error += error;
      }
      for (Approximate& s : w) {
        if (router.normalize) {
          const double share = s.value / (total + 1e-20);
          const double relative = total_error / total + kRounding * (roundings(k + 1) + 1);
          s = {share, s.error / (total + 1e-20) + relative * share};
        }
        const double scale = static_cast<double>(router.scale), scaled = s.value * scale;
        s = {scaled, s.error * std::abs(scale) + kRounding * std::abs(scaled) + kUnderflow};
      }
    } else {
      chosen = top_k(logits, k);
      std::vector<double> best;
      for (const int64_t e : chosen) best.push_back(logits[static_cast<size_t>(e)]);
      w = softmax(router.routing == Routing::softmax_of_top ? best : logits, best);
    }
    for (int64_t i = 0; i < k; ++i) {
      r.experts.value(t, i) = static_cast<double>(chosen[static_cast<size_t>(i)]);
      r.weights.value(t, i) = w[static_cast<size_t>(i)].value;
      r.weights.tolerance(t, i) = w[static_cast<size_t>(i)].error;
    }
  }
  int64_t row = 0;
  for (int64_t e = 0; e < experts; ++e) {
    for (int64_t pair = 0; pair < tokens * k; ++pair) {
      if (r.experts.value[pair] != static_cast<double>(e)) continue;
      r.tokens.value(row, 0) = static_cast<double>(pair / k);
      r.rows.value(pair / k, pair % k) = static_cast<double>(row);
      ++row;
    }
    r.offsets.value(e + 1, 0) = static_cast<double>(row);
  }
  return r;
}

struct CombineInputs {
  Matrix x;                   // [T · top_k, d]
  Matrix weights;             // [T, top_k]
  std::vector<int64_t> rows;  // [T · top_k]
  Matrix add;                 // [T, d], or empty
  double alpha = 1;
};

inline Expected combine(const CombineInputs& in) {
  const int64_t tokens = in.weights.rows, k = in.weights.cols, width = in.x.cols;
  Expected y(tokens, width);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t c = 0; c < width; ++c) {
      double sum = 0, terms = 0;
      for (int64_t i = 0; i < k; ++i) {
        const double term = in.weights(t, i) * in.x(in.rows[static_cast<size_t>(t * k + i)], c);
        sum += term;
        terms += std::abs(term);
      }
      const double value = in.alpha * sum + (in.add ? in.add(t, c) : 0.0);
      // Without fused multiply-add the product is rounded on its own; then come the sum of top_k and alpha.
      y.value(t, c) = value;
      y.tolerance(t, c) =
          kRounding * ((1 + roundings(k) + 1) * std::abs(in.alpha) * terms + (in.add ? std::abs(value) : 0.0)) +
          (static_cast<double>(k) * std::abs(in.alpha) + 1) * kUnderflow;
    }
  }
  return y;
}

// experts · Σ f · P, in the order of the paper: one expert after the other over all rows.
inline double aux_loss(const Matrix& logits, int64_t k) {
  double loss = 0;
  for (int64_t e = 0; e < logits.cols; ++e) {
    double taken = 0, probability = 0;
    for (int64_t r = 0; r < logits.rows; ++r) {
      const auto first = logits.values.begin() + r * logits.cols;
      const std::vector<double> l(first, first + logits.cols);
      const std::vector<int64_t> best = top_k(l, k);
      taken += static_cast<double>(std::count(best.begin(), best.end(), e));
      probability += softmax(l, {l[static_cast<size_t>(e)]}).front().value;
    }
    const auto rows = static_cast<double>(logits.rows);
    loss += taken / rows * (probability / rows) * static_cast<double>(logits.cols);
  }
  return loss;
}

}  // namespace elapid::reference
