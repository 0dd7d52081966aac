#include "elapid/nn/mamba1.h"

#include "elapid/ops/rms_norm/rms_norm.h"
#include "elapid/ops/selective_scan/selective_scan.h"

namespace elapid {

Mamba1::Mamba1(const Mamba1Config& c, int64_t layer, StateSpec& spec)
    : config_(c),
      in_proj_{.in = c.d_model, .out = 2 * c.d_inner, .has_bias = c.proj_bias},
      x_proj_{.in = c.d_inner, .out = c.dt_rank + 2 * c.d_state},
      dt_proj_{.in = c.dt_rank, .out = c.d_inner},  // its bias is dt_bias, inside the softplus
      out_proj_{.in = c.d_inner, .out = c.d_model, .has_bias = c.proj_bias} {
  conv_state_ = static_cast<int64_t>(spec.entries.size());
  spec.entries.push_back({"conv", layer, {c.d_conv - 1, c.d_inner}});
  ssm_state_ = static_cast<int64_t>(spec.entries.size());
  spec.entries.push_back({.kind = "ssm", .layer = layer, .shape = {c.d_inner, c.d_state}, .recurrent = true});
}

void Mamba1::forward(Context& ctx, const Tensor& h, const Epilogue& out, const Pass& pass) const {
  const int64_t d_inner = config_.d_inner, rank = config_.dt_rank, d_state = config_.d_state;
  const Tensor xz = in_proj_(ctx, h);  // [T, 2 · d_inner]
  const Tensor u = causal_conv1d(ctx, xz.columns(0, d_inner), conv_, pass.batch, pass.state(conv_state_));
  const Tensor dtbc = x_proj_(ctx, u);  // [T, dt_rank + 2 · d_state]
  Tensor dt = dtbc.columns(0, rank), B = dtbc.columns(rank, rank + d_state),
         C = dtbc.columns(rank + d_state, dtbc.cols());
  if (config_.bcdt_norm) {
    dt = rms_norm(ctx, dt, dt_norm_, config_.bcdt_norm_eps);
    B = rms_norm(ctx, B, B_norm_, config_.bcdt_norm_eps);
    C = rms_norm(ctx, C, C_norm_, config_.bcdt_norm_eps);
  }
  const SelectiveScan scan{.x = u,                   // [T, d_inner]
                           .dt = dt_proj_(ctx, dt),  // [T, d_inner]
                           .B = B,                   // [T, d_state]
                           .C = C,                   // [T, d_state]
                           .A = A_.value,
                           .D = D_.value,
                           .dt_bias = dt_bias_.value,
                           .z = xz.columns(d_inner, 2 * d_inner)};
  out_proj_(ctx, selective_scan(ctx, scan, pass.batch, pass.state(ssm_state_)), out);
}

void Mamba1::visit(const std::string& prefix, const ParameterVisitor& f) {
  const Mamba1Config& c = config_;
  in_proj_.visit(prefix + "in_proj.", f);
  f({prefix + "conv1d.weight", &conv_.weight, {c.d_inner, 1, c.d_conv}, Role::conv_taps});
  if (c.conv_bias) f({prefix + "conv1d.bias", &conv_.bias, {c.d_inner}, Role::vector});
  x_proj_.visit(prefix + "x_proj.", f);
  if (c.bcdt_norm && c.bcdt_norm_weights) {
    f({prefix + "dt_norm.weight", &dt_norm_, {c.dt_rank}, Role::vector});
    f({prefix + "B_norm.weight", &B_norm_, {c.d_state}, Role::vector});
    f({prefix + "C_norm.weight", &C_norm_, {c.d_state}, Role::vector});
  }
  dt_proj_.visit(prefix + "dt_proj.", f);
  f({prefix + "dt_bias", &dt_bias_, {c.d_inner}, Role::vector});
  f({prefix + "A_log", &A_, {c.d_inner, c.d_state}, Role::decay});
  f({prefix + "D", &D_, {c.d_inner}, Role::vector});
  out_proj_.visit(prefix + "out_proj.", f);
}

}  // namespace elapid
