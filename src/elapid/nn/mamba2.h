#pragma once

// The Mamba-2 mixer (Dao & Gu 2024, arXiv 2405.21060; mamba_ssm's modules/mamba2.py):
//   z, xBC, dt = in_proj(h);  x, B, C = silu(conv(xBC));  y = ssd(x, dt, B, C);  out_proj(rms_norm(y · silu(z)))

#include "elapid/nn/linear.h"
#include "elapid/nn/pass.h"
#include "elapid/ops/causal_conv1d/causal_conv1d.h"

#include <array>
#include <tuple>
#include <vector>

namespace elapid {

class Mamba2;

struct Mamba2Config {
  using Body = Mamba2;  // what this configures

  int64_t d_model = 0, d_state = 0, heads = 0, head_dim = 0, groups = 1, d_conv = 4;
  bool in_bias = false, out_bias = false, conv_bias = true;
  float dt_min = 0, dt_max = __builtin_inff();  // time_step_limit
  float norm_eps = 1e-5f;
  bool gated_norm = true;   // else the gate alone
  int64_t norm_groups = 1;  // the gated norm's; 1: over the whole of d_inner
  bool norm_before_gate = false;
  bool d_per_channel = false;  // D is [heads · head_dim]
  // What in_proj's z, x, B, C and dt are multiplied by.
  std::array<float, 5> multipliers{1, 1, 1, 1, 1};

  // Every field, for whoever treats configurations as values: a field that is missing here is missing in fingerprints.
  [[nodiscard]] auto fields() const {
    return std::tie(d_model, d_state, heads, head_dim, groups, d_conv, in_bias, out_bias, conv_bias, dt_min, dt_max,
                    norm_eps, gated_norm, norm_groups, norm_before_gate, d_per_channel, multipliers);
  }
  [[nodiscard]] int64_t d_inner() const { return heads * head_dim; }
  [[nodiscard]] int64_t conv_dim() const { return d_inner() + 2 * groups * d_state; }
};

class Mamba2 {
 public:
  Mamba2(const Mamba2Config& config, int64_t layer, StateSpec& spec);

  // The mixer's output [T, d_model] for the normed h [T, d_model] goes where `out` says.
  void forward(Context& ctx, const Tensor& h, const Epilogue& out, const Pass& pass) const;

  void visit(const std::string& prefix, const ParameterVisitor& f);
  static constexpr std::string_view kName = "mamba2";

 private:
  Mamba2Config config_;
  Linear in_proj_, out_proj_;
  CausalConv1d conv_;
  Param A_, D_, dt_bias_, norm_;
  std::vector<float> multipliers_;  // of every column of in_proj's output; empty: all 1
  // Entries of the state spec: [d_conv − 1, conv_dim] and [heads, head_dim, d_state].
  int64_t conv_state_ = 0, ssm_state_ = 0;
};

}  // namespace elapid
