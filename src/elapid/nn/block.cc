#include "elapid/nn/block.h"

#include "elapid/ops/elementwise/elementwise.h"

namespace elapid {
namespace {

Body make_body(const BodyConfig& config, int64_t layer, StateSpec& spec) {
  return std::visit(
      [&](const auto& c) { return Body(std::in_place_type<typename std::decay_t<decltype(c)>::Body>, c, layer, spec); },
      config);
}

Tensor input_of(Context& ctx, BlockConfig::Reads reads, const Streams& streams) {
  switch (reads) {
    case BlockConfig::Reads::residual: return streams.residual;
    case BlockConfig::Reads::residual_beside_embedding: return concat_columns(ctx, streams.residual, streams.embedding);
    case BlockConfig::Reads::side: return streams.side;
    case BlockConfig::Reads::residual_plus_side: return add(ctx, streams.residual, streams.side);
  }
  return {};
}

}  // namespace

Block::Block(const BlockConfig& config, const Common& common, StateSpec& spec)
    : reads_(config.reads),
      writes_(config.writes),
      layer_(config.layer),
      residual_scale_(common.residual_scale),
      norm_(common.norm, common.d_model * (config.reads == BlockConfig::Reads::residual_beside_embedding ? 2 : 1)) {
  for (const BodyUse& use : config.bodies) {
    bodies_.push_back({make_body(use.config, config.layer, spec), use.in_scale, use.out_scale});
  }
}

void Block::forward(Context& ctx, const Streams& streams, const Pass& pass) const {
  const Arena::Scope scope(ctx.arena);
  const Tensor h = norm_(ctx, input_of(ctx, reads_, streams));
  Epilogue out;
  const float scale = writes_ == BlockConfig::Writes::residual ? residual_scale_ : 1;
  out.out = writes_ == BlockConfig::Writes::residual ? streams.residual : streams.side;
  // The side stream begins anew with each block that writes it.
  if (writes_ == BlockConfig::Writes::residual) out.add = streams.residual;
  for (const Use& use : bodies_) {
    out.alpha = scale * use.out_scale;
    const Tensor input = use.in_scale == 1 ? h : elapid::scale(ctx, h, use.in_scale);
    std::visit([&](const auto& b) { b.forward(ctx, input, out, pass); }, use.body);
    out.add = out.out;
  }
}

void Block::visit(const std::string& prefix, const ParameterVisitor& f) {
  norm_.visit(prefix + "norm.", f);
  for (Use& use : bodies_) {
    std::visit([&](auto& b) { b.visit(concat(prefix, b.kName, "."), f); }, use.body);
  }
}

}  // namespace elapid
