#pragma once

// The Mamba-1 mixer (Gu & Dao 2023, arXiv 2312.00752; transformers' modeling_mamba.py, modeling_falcon_mamba.py and
// modeling_jamba.py):
//   x, z = in_proj(h);  u = silu(conv(x));  dt, B, C = x_proj(u);  dt = dt_proj(dt)
//   out_proj(selective_scan(u, dt, B, C) · silu(z))
// Falcon-Mamba and Jamba norm dt, B and C as they come from x_proj.

#include "elapid/nn/linear.h"
#include "elapid/nn/pass.h"
#include "elapid/ops/causal_conv1d/causal_conv1d.h"

#include <tuple>

namespace elapid {

class Mamba1;

struct Mamba1Config {
  using Body = Mamba1;  // what this configures

  int64_t d_model = 0, d_inner = 0, d_state = 16, dt_rank = 0, d_conv = 4;
  bool proj_bias = false, conv_bias = true;  // of in_proj and out_proj; of the convolution
  bool bcdt_norm = false;                    // root-mean-square norms of dt, B and C, before dt_proj and the scan
  bool bcdt_norm_weights = false;            // with weights: Jamba; without: Falcon-Mamba
  float bcdt_norm_eps = 1e-6f;

  // Every field, see Mamba2Config.
  [[nodiscard]] auto fields() const {
    return std::tie(d_model, d_inner, d_state, dt_rank, d_conv, proj_bias, conv_bias, bcdt_norm, bcdt_norm_weights,
                    bcdt_norm_eps);
  }
};

class Mamba1 {
 public:
  Mamba1(const Mamba1Config& config, int64_t layer, StateSpec& spec);

  // The mixer's output [T, d_model] for the normed h [T, d_model] goes where `out` says.
  void forward(Context& ctx, const Tensor& h, const Epilogue& out, const Pass& pass) const;

  void visit(const std::string& prefix, const ParameterVisitor& f);
  static constexpr std::string_view kName = "mamba1";

 private:
  Mamba1Config config_;
  Linear in_proj_, x_proj_, dt_proj_, out_proj_;
  CausalConv1d conv_;
  Param A_, D_, dt_bias_, dt_norm_, B_norm_, C_norm_;
  int64_t conv_state_ = 0, ssm_state_ = 0;  // entries of the state spec: [d_conv − 1, d_inner] and [d_inner, d_state]
};

}  // namespace elapid
