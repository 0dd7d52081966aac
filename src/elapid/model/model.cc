#include "elapid/model/model.h"

#include "elapid/core/error.h"
#include "elapid/ops/elementwise/elementwise.h"
#include "elapid/ops/embedding/embedding.h"
#include "elapid/ops/gather_rows/gather_rows.h"
#include "elapid/ops/matmul/matmul.h"
#include "elapid/ops/sequences.h"

namespace elapid {

std::string_view name_of(Precision precision) {
  switch (precision) {
    case Precision::f32: return "f32";
    case Precision::bf16: return "bf16";
    case Precision::int8: return "int8";
    case Precision::int4: return "int4";
  }
  return "?";
}

Model::Model(ModelConfig config) : config_(std::move(config)), norm_(config_.norm, config_.d_model) {
  auto spec = std::make_shared<StateSpec>();
  blocks_.reserve(config_.blocks.size());
  const Block::Common common{config_.d_model, config_.norm, config_.residual_scale};
  for (const BlockConfig& block : config_.blocks) {
    blocks_.emplace_back(block, common, *spec);
    reads_embedding_ |= block.reads == BlockConfig::Reads::residual_beside_embedding;
    has_side_ |= block.writes == BlockConfig::Writes::side;
  }
  spec_ = std::move(spec);
}

Tensor Model::hidden(Context& ctx, const Pass& pass) const {
  const Batch& batch = pass.batch;
  const Tensor x = batch.embeddings ? scale(ctx, batch.embeddings, config_.given_embedding_scale)  // [T, d_model]
                                    : embedding(ctx, batch.tokens, embedding_, config_.embedding_scale,
                                                arrays_of(ctx, batch).tokens);
  Streams streams{.residual = x, .embedding = {}, .side = {}};
  if (reads_embedding_) streams.embedding = scale(ctx, x, 1);  // the residual will change
  if (has_side_) streams.side = ctx.arena.alloc(x.shape, DType::f32);
  const auto observe = [&](int64_t layer) {
    if (pass.observer != nullptr && pass.observer->residual) pass.observer->residual(layer, x);
  };
  observe(0);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    blocks_[i].forward(ctx, streams, pass);
    const int64_t layer = blocks_[i].layer();
    if (i + 1 == blocks_.size() || blocks_[i + 1].layer() != layer) observe(layer + 1);
  }
  Context plain = ctx;  // what follows from all layers stays float32
  plain.activations = DType::f32;
  return norm_(plain, gather_rows(ctx, x, batch.outputs, arrays_of(ctx, batch).outputs));
}

Tensor Model::logits(Context& ctx, const Tensor& hidden) const {
  const Tensor out = ctx.arena.alloc({hidden.rows(), config_.vocab}, DType::f32);
  return matmul(ctx, hidden, head_, {.alpha = config_.logit_scale, .out = out});
}

void Model::visit(const ParameterVisitor& f) {
  f({"embedding.weight", &embedding_, {config_.vocab, config_.d_model}, Role::table});
  for (size_t i = 0; i < blocks_.size(); ++i) blocks_[i].visit(concat("blocks.", i, "."), f);
  norm_.visit("norm.", f);
  if (!config_.tied_head) f({"head.weight", &head_, {config_.vocab, config_.d_model}, Role::matrix});
}

}  // namespace elapid
