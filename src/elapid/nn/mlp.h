#pragma once

// The MLP of one layer:
//   u = up_proj(h) [+ adapter.b(adapter.a(h))];  y = down_proj(act(gate) · up | act(u));
//   [post_proj(y)]
// with u = gate, up when gated. post_proj and the adapter are Zamba2's: its shared block ends in a further matrix, and
// each of the block's uses adds a low-rank product of its own to up_proj.

#include "elapid/nn/linear.h"
#include "elapid/nn/pass.h"
#include "elapid/ops/activation/activation.h"

#include <tuple>

namespace elapid {

class Mlp;

struct MlpConfig {
  using Body = Mlp;  // what this configures

  int64_t d_model = 0, d_ff = 0, d_out = 0;
  Activation act = Activation::silu;
  bool gated = true, bias = false;
  float gate_multiplier = 1;  // of act's argument
  bool post_proj = false;
  int64_t adapter_rank = 0;  // 0: none

  // Every field, see Mamba2Config.
  [[nodiscard]] auto fields() const {
    return std::tie(d_model, d_ff, d_out, act, gated, bias, gate_multiplier, post_proj, adapter_rank);
  }
};

class Mlp {
 public:
  Mlp(const MlpConfig& config, int64_t layer, StateSpec& spec);

  // The output [T, d_out] for the normed h [T, d_model] goes where `out` says.
  void forward(Context& ctx, const Tensor& h, const Epilogue& out, const Pass& pass) const;

  void visit(const std::string& prefix, const ParameterVisitor& f);
  static constexpr std::string_view kName = "mlp";

 private:
  MlpConfig config_;
  Linear up_proj_, down_proj_, post_proj_, adapter_a_, adapter_b_;
};

}  // namespace elapid
