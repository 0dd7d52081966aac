#include "elapid/nn/block.h"

#include "elapid/ops/rms_norm/rms_norm.h"

namespace elapid {

Block::Block(const BlockConfig& config, int64_t d_model, float norm_eps, int64_t layer, StateSpec& spec)
    : d_model_(d_model), norm_eps_(norm_eps) {
  for (const BodyConfig& body : config.bodies) {
    std::visit(
        [&](const auto& c) {
          bodies_.emplace_back(std::in_place_type<typename std::decay_t<decltype(c)>::Body>, c, layer, spec);
        },
        body);
  }
}

void Block::forward(Context& ctx, const Tensor& x, const Pass& pass) const {
  const Arena::Scope scope(ctx.arena);
  const Tensor h = rms_norm(ctx, x, norm_, norm_eps_);
  for (const Body& body : bodies_) {
    std::visit([&](const auto& b) { b.forward(ctx, h, {.add = x, .out = x}, pass); }, body);
  }
}

void Block::visit(const std::string& prefix, const ParameterVisitor& f) {
  f({prefix + "norm.weight", &norm_, {d_model_}, Role::vector});
  for (Body& body : bodies_) {
    std::visit([&](auto& b) { b.visit(concat(prefix, b.kName, "."), f); }, body);
  }
}

}  // namespace elapid
