#include "elapid/ops/moe/aux_loss.h"

#include "elapid/core/error.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace elapid {

AuxLoss::AuxLoss(int64_t experts, int64_t top_k) : top_k_(top_k) {
  require(top_k >= 1 && top_k <= experts, "aux_loss: top_k must be 1 to ", experts, " experts, got ", top_k);
  for (std::vector<double>* v : {&taken_, &probability_, &row_}) v->resize(static_cast<size_t>(experts));
  order_.resize(static_cast<size_t>(experts));
}

void AuxLoss::add(const Tensor& logits) {
  const auto experts = static_cast<int64_t>(taken_.size());
  require(logits.dtype == DType::f32 && logits.cols() == experts, "aux_loss: logits must be f32 with ", experts,
          " columns, got ", name_of(logits.dtype), " with ", logits.cols());
  for (int64_t r = 0; r < logits.rows(); ++r) {
    const float* l = logits.row<float>(r);
    // By logit as by softmax, of equals the first, NaN before all (see moe.h).
    std::iota(order_.begin(), order_.end(), int64_t{0});
    std::partial_sort(order_.begin(), order_.begin() + top_k_, order_.end(), [&](int64_t a, int64_t b) {
      const bool nan_a = std::isnan(l[a]), nan_b = std::isnan(l[b]);
      if (nan_a != nan_b) return nan_a;
      return l[a] == l[b] || nan_a ? a < b : l[a] > l[b];
    });
    for (int64_t k = 0; k < top_k_; ++k) taken_[static_cast<size_t>(order_[static_cast<size_t>(k)])] += 1;
    const double top = static_cast<double>(l[order_.front()]);
    double total = 0;
    for (int64_t e = 0; e < experts; ++e) {
      total += row_[static_cast<size_t>(e)] = std::exp(static_cast<double>(l[e]) - top);
    }
    for (int64_t e = 0; e < experts; ++e) {
      probability_[static_cast<size_t>(e)] += row_[static_cast<size_t>(e)] / total;
    }
  }
  rows_ += logits.rows();
}

double AuxLoss::value() const {
  require(rows_ >= 1, "aux_loss: there must be at least one row of logits, got none");
  const auto rows = static_cast<double>(rows_);
  double loss = 0;
  for (size_t e = 0; e < taken_.size(); ++e) loss += taken_[e] / rows * (probability_[e] / rows);
  return loss * static_cast<double>(taken_.size());
}

double aux_loss(const Tensor& logits, int64_t top_k) {
  AuxLoss loss(logits.cols(), top_k);
  loss.add(logits);
  return loss.value();
}

}  // namespace elapid
