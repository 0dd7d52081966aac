#include "elapid/model/model.h"

#include "elapid/core/error.h"
#include "elapid/ops/embedding/embedding.h"
#include "elapid/ops/gather_rows/gather_rows.h"
#include "elapid/ops/matmul/matmul.h"
#include "elapid/ops/rms_norm/rms_norm.h"

namespace elapid {

Model::Model(ModelConfig config) : config_(std::move(config)) {
  auto spec = std::make_shared<StateSpec>();
  blocks_.reserve(config_.blocks.size());
  for (size_t i = 0; i < config_.blocks.size(); ++i) {
    blocks_.emplace_back(config_.blocks[i], config_.d_model, config_.norm_eps, static_cast<int64_t>(i), *spec);
  }
  spec_ = std::move(spec);
}

Tensor Model::hidden(Context& ctx, const Pass& pass) const {
  const Tensor x = embedding(ctx, pass.batch.tokens, embedding_, config_.embedding_scale);  // [T, d_model]
  int64_t layer = 0;
  const auto observe = [&] {
    if (pass.observer != nullptr && pass.observer->residual) pass.observer->residual(layer, x);
    ++layer;
  };
  observe();
  for (const Block& block : blocks_) {
    block.forward(ctx, x, pass);
    observe();
  }
  return rms_norm(ctx, gather_rows(ctx, x, pass.batch.outputs), norm_, config_.norm_eps);
}

Tensor Model::logits(Context& ctx, const Tensor& hidden) const {
  return matmul(ctx, hidden, head_, {.alpha = config_.logit_scale});
}

void Model::visit(const ParameterVisitor& f) {
  f({"embedding.weight", &embedding_, {config_.vocab, config_.d_model}, Role::table});
  for (size_t i = 0; i < blocks_.size(); ++i) blocks_[i].visit(concat("blocks.", i, "."), f);
  f({"norm.weight", &norm_, {config_.d_model}, Role::vector});
  if (!config_.tied_head) f({"head.weight", &head_, {config_.vocab, config_.d_model}, Role::matrix});
}

}  // namespace elapid
