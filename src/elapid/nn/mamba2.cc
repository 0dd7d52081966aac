#include "elapid/nn/mamba2.h"

#include "elapid/ops/elementwise/elementwise.h"
#include "elapid/ops/rms_norm/rms_norm.h"
#include "elapid/ops/ssd_scan/ssd_scan.h"

#include <algorithm>

namespace elapid {

Mamba2::Mamba2(const Mamba2Config& c, int64_t layer, StateSpec& spec)
    : config_(c),
      in_proj_{.in = c.d_model, .out = c.d_inner() + c.conv_dim() + c.heads, .has_bias = c.in_bias},
      out_proj_{.in = c.d_inner(), .out = c.d_model, .has_bias = c.out_bias} {
  if (std::any_of(c.multipliers.begin(), c.multipliers.end(), [](float m) { return m != 1; })) {
    const int64_t widths[] = {c.d_inner(), c.d_inner(), c.groups * c.d_state, c.groups * c.d_state, c.heads};
    for (size_t part = 0; part < c.multipliers.size(); ++part) {
      multipliers_.insert(multipliers_.end(), static_cast<size_t>(widths[part]), c.multipliers[part]);
    }
  }
  conv_state_ = static_cast<int64_t>(spec.entries.size());
  spec.entries.push_back({"conv", layer, {c.d_conv - 1, c.conv_dim()}});
  ssm_state_ = static_cast<int64_t>(spec.entries.size());
  spec.entries.push_back({.kind = "ssm", .layer = layer, .shape = {c.heads, c.head_dim, c.d_state}, .recurrent = true});
}

void Mamba2::forward(Context& ctx, const Tensor& h, const Epilogue& out, const Pass& pass) const {
  const int64_t d_inner = config_.d_inner(), conv_dim = config_.conv_dim(), bc = config_.groups * config_.d_state;
  const Tensor zxbcdt = in_proj_(ctx, h);  // [T, d_inner + conv_dim + heads]
  if (!multipliers_.empty()) {
    // Tensors have no const form; the operator reads them.
    scale_columns(ctx, zxbcdt, Tensor(const_cast<float*>(multipliers_.data()), DType::f32, {zxbcdt.cols()}));
  }
  const Tensor z = zxbcdt.columns(0, d_inner);                          // [T, d_inner]
  const Tensor xbc = zxbcdt.columns(d_inner, d_inner + conv_dim);       // [T, conv_dim]
  const Tensor dt = zxbcdt.columns(d_inner + conv_dim, zxbcdt.cols());  // [T, heads]
  const Tensor u = causal_conv1d(ctx, xbc, conv_, pass.batch, pass.state(conv_state_));
  const SsdScan scan{.x = u.columns(0, d_inner),  // [T, heads · head_dim]
                     .dt = dt,
                     .B = u.columns(d_inner, d_inner + bc),           // [T, groups · d_state]
                     .C = u.columns(d_inner + bc, d_inner + 2 * bc),  // [T, groups · d_state]
                     .A = A_.value,
                     .D = D_.value,
                     .dt_bias = dt_bias_.value,
                     .groups = config_.groups,
                     .dt_min = config_.dt_min,
                     .dt_max = config_.dt_max,
                     .arithmetic = in_proj_.weight.arithmetic};
  const Tensor y = ssd_scan(ctx, scan, pass.batch, pass.state(ssm_state_));  // [T, d_inner]
  const Tensor gated = config_.gated_norm ? gated_rms_norm(ctx, y, z, norm_, config_.norm_eps, config_.norm_groups,
                                                           config_.norm_before_gate)
                                          : silu_gate(ctx, y, z);
  out_proj_(ctx, gated, out);
}

void Mamba2::visit(const std::string& prefix, const ParameterVisitor& f) {
  const Mamba2Config& c = config_;
  in_proj_.visit(prefix + "in_proj.", f);
  f({prefix + "conv1d.weight", &conv_.weight, {c.conv_dim(), 1, c.d_conv}, Role::conv_taps});
  if (c.conv_bias) f({prefix + "conv1d.bias", &conv_.bias, {c.conv_dim()}, Role::vector});
  f({prefix + "A_log", &A_, {c.heads}, Role::decay});
  f({prefix + "D", &D_, {c.d_per_channel ? c.d_inner() : c.heads}, Role::vector});
  f({prefix + "dt_bias", &dt_bias_, {c.heads}, Role::vector});
  if (c.gated_norm) f({prefix + "norm.weight", &norm_, {c.d_inner()}, Role::vector});
  out_proj_.visit(prefix + "out_proj.", f);
}

}  // namespace elapid
