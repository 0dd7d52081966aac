#include "elapid/nn/moe.h"

#include "elapid/core/error.h"
#include "elapid/ops/matmul/grouped_matmul.h"

namespace elapid {
namespace {

Router router_of(const MoeConfig& c) {
  return {.routing = c.routing,
          .top_k = c.top_k,
          .groups = c.groups,
          .top_groups = c.top_groups,
          .normalize = c.normalize,
          .scale = c.routed_scale};
}

}  // namespace

Moe::Moe(const MoeConfig& c, int64_t layer, StateSpec& /*spec*/)
    : config_(c),
      layer_(layer),
      router_{.in = c.d_model, .out = c.experts},
      latent_in_{.in = c.d_model, .out = c.d_latent, .has_bias = c.latent_bias},
      latent_out_{.in = c.d_latent, .out = c.d_model, .has_bias = c.latent_bias} {
  require(c.experts >= 1 && c.experts <= kMostExperts, "moe: experts must be 1 to ", kMostExperts, ", got ", c.experts);
  check_router(router_of(c), c.experts, c.correction_bias);
  up_proj_.resize(static_cast<size_t>(c.experts));
  down_proj_.resize(static_cast<size_t>(c.experts));
}

void Moe::forward(Context& ctx, const Tensor& h, const Epilogue& out, const Pass& pass) const {
  // Float32 whatever activations are.
  const Tensor logits = router_(ctx, h, {.out = ctx.arena.alloc({h.rows(), config_.experts}, DType::f32)});
  if (pass.observer != nullptr && pass.observer->router_logits) pass.observer->router_logits(layer_, logits);
  const Routes routes = route(ctx, logits, router_of(config_), correction_bias_);
  const bool latent = config_.d_latent > 0;
  const Tensor x = expert_rows(ctx, latent ? latent_in_(ctx, h) : h, routes);  // [T · top_k, d_model | d_latent]
  const Tensor u = grouped_matmul(ctx, x, up_proj_, routes.offsets);           // [T · top_k, (2 |) d_ff]
  const Tensor v = activation(ctx, u, config_.act, config_.gated);             // [T · top_k, d_ff]
  const Tensor y = grouped_matmul(ctx, v, down_proj_, routes.offsets);         // [T · top_k, d_model | d_latent]
  if (latent) {
    latent_out_(ctx, combine(ctx, y, routes), out);
  } else {
    combine(ctx, y, routes, out);
  }
}

void Moe::visit(const std::string& prefix, const ParameterVisitor& f) {
  const MoeConfig& c = config_;
  const int64_t width = c.d_latent > 0 ? c.d_latent : c.d_model;
  router_.visit(prefix + "router.", f, Role::router);
  if (c.correction_bias) f({prefix + "correction_bias", &correction_bias_, {c.experts}, Role::vector});
  if (c.d_latent > 0) latent_in_.visit(prefix + "latent_in.", f);
  const double use = static_cast<double>(c.top_k) / static_cast<double>(c.experts);
  for (size_t e = 0; e < up_proj_.size(); ++e) {
    const std::string expert = concat(prefix, "experts.", e, ".");
    f({expert + "up_proj.weight", &up_proj_[e], {(c.gated ? 2 : 1) * c.d_ff, width}, Role::matrix, use});
    f({expert + "down_proj.weight", &down_proj_[e], {width, c.d_ff}, Role::matrix, use});
  }
  if (c.d_latent > 0) latent_out_.visit(prefix + "latent_out.", f);
}

}  // namespace elapid
