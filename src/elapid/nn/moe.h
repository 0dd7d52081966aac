#pragma once

// A mixture of experts: every token takes top_k of many MLPs, which its router picks and weighs (see ops/moe/moe.h):
//   w, e = route(router(h));  y[t] = Σ over ranks k of w[t, k] · down_e(act(gate_e) · up_e | act(up_e))
// Experts that all tokens take are a second body, an Mlp. Nemotron-H may let the experts work in a smaller space:
// they read latent_in(h), and latent_out() follows their sum.

#include "elapid/nn/linear.h"
#include "elapid/nn/pass.h"
#include "elapid/ops/activation/activation.h"
#include "elapid/ops/moe/moe.h"

#include <tuple>
#include <vector>

namespace elapid {

class Moe;

struct MoeConfig {
  using Body = Moe;  // what this configures

  int64_t d_model = 0, d_ff = 0, experts = 0, top_k = 0;
  Activation act = Activation::silu;
  bool gated = true;
  Routing routing = Routing::softmax_of_top;
  // Of Routing::sigmoid_groups alone.
  int64_t groups = 1, top_groups = 1;
  bool normalize = false;
  float routed_scale = 1;
  bool correction_bias = false;
  int64_t d_latent = 0;  // what the experts read and write; 0: d_model itself
  bool latent_bias = false;

  // Every field, see Mamba2Config.
  [[nodiscard]] auto fields() const {
    return std::tie(d_model, d_ff, experts, top_k, act, gated, routing, groups, top_groups, normalize, routed_scale,
                    correction_bias, d_latent, latent_bias);
  }
};

class Moe {
 public:
  // An Error when no token could be routed so.
  Moe(const MoeConfig& config, int64_t layer, StateSpec& spec);

  // The output [T, d_model] for the normed h [T, d_model] goes where `out` says.
  void forward(Context& ctx, const Tensor& h, const Epilogue& out, const Pass& pass) const;

  void visit(const std::string& prefix, const ParameterVisitor& f);
  static constexpr std::string_view kName = "moe";
  static constexpr int64_t kMostExperts = 4096;

 private:
  MoeConfig config_;
  int64_t layer_;
  Linear router_, latent_in_, latent_out_;
  Param correction_bias_;
  std::vector<Param> up_proj_, down_proj_;  // of each expert
};

}  // namespace elapid
