#pragma once

// The load-balancing loss of a mixture of experts as transformers computes it (load_balancing_loss_func of granitemoe,
// granitemoehybrid and jamba, all the same; after the Switch Transformer, arXiv 2101.03961, equations 4 to 6):
//
//   loss = experts · Σ over e of f[e] · P[e]
//
// over the rows of all layers together, a row being one real token in one layer: f[e] the share of rows that have
// expert e among their top_k, P[e] the mean of the softmax over all experts. It is softmax and top-k of the raw logits
// whatever the class routes by; where every expert is taken equally it is top_k. In double.

#include "elapid/core/tensor.h"

#include <vector>

namespace elapid {

// Rows come in any pieces: layer by layer, batch by batch.
class AuxLoss {
 public:
  AuxLoss(int64_t experts, int64_t top_k);

  // logits [rows, experts] f32.
  void add(const Tensor& logits);

  [[nodiscard]] int64_t rows() const { return rows_; }
  // Of everything added so far; an Error when that is nothing.
  [[nodiscard]] double value() const;

 private:
  int64_t top_k_, rows_ = 0;
  std::vector<double> taken_, probability_;  // sums over rows, of each expert
  std::vector<double> row_;                  // scratch
  std::vector<int64_t> order_;
};

// Of one piece: logits [layers · T, experts] f32.
double aux_loss(const Tensor& logits, int64_t top_k);

}  // namespace elapid
