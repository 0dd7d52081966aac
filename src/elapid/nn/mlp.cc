#include "elapid/nn/mlp.h"

namespace elapid {

Mlp::Mlp(const MlpConfig& c, int64_t /*layer*/, StateSpec& /*spec*/)
    : config_(c),
      up_proj_{.in = c.d_model, .out = (c.gated ? 2 : 1) * c.d_ff, .has_bias = c.bias},
      down_proj_{.in = c.d_ff, .out = c.d_out, .has_bias = c.bias},
      post_proj_{.in = c.d_out, .out = c.d_out},
      adapter_a_{.in = c.d_model, .out = c.adapter_rank},
      adapter_b_{.in = c.adapter_rank, .out = up_proj_.out} {}

void Mlp::forward(Context& ctx, const Tensor& h, const Epilogue& out, const Pass& /*pass*/) const {
  const Tensor u = up_proj_(ctx, h);  // [T, (gated ? 2 : 1) · d_ff]
  if (config_.adapter_rank > 0) adapter_b_(ctx, adapter_a_(ctx, h), {.add = u, .out = u});
  const Tensor v = activation(ctx, u, config_.act, config_.gated, config_.gate_multiplier);  // [T, d_ff]
  if (config_.post_proj) {
    post_proj_(ctx, down_proj_(ctx, v), out);
  } else {
    down_proj_(ctx, v, out);
  }
}

void Mlp::visit(const std::string& prefix, const ParameterVisitor& f) {
  up_proj_.visit(prefix + "up_proj.", f);
  if (config_.adapter_rank > 0) {
    adapter_a_.visit(prefix + "adapter.a.", f);
    adapter_b_.visit(prefix + "adapter.b.", f);
  }
  down_proj_.visit(prefix + "down_proj.", f);
  if (config_.post_proj) post_proj_.visit(prefix + "post_proj.", f);
}

}  // namespace elapid
