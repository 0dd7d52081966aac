#pragma once

// Causal self-attention with grouped heads:
//   q, k, v = conv(qkv_proj(h));  out_proj(attention(rotary(q), rotary(key_multiplier · k), v))
// Every family's is one of these: rotary over all, some or none of a head, pairing halves or neighbours; mamba_ssm's
// with a short causal convolution (modules/mha.py); Falcon-H1's multiplied keys; Zamba2's, which reads more than
// d_model and has a low-rank adapter for each use of its shared weights.

#include "elapid/nn/linear.h"
#include "elapid/nn/pass.h"
#include "elapid/ops/causal_conv1d/causal_conv1d.h"

#include <array>
#include <tuple>
#include <vector>

namespace elapid {

class Attention;

struct AttentionConfig {
  using Body = Attention;  // what this configures

  int64_t d_in = 0;  // the width of what it reads
  int64_t d_model = 0, heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 1;  // of scores
  bool qkv_bias = false, out_bias = false;
  // Of each pair that turns: the first 2 · n elements of a head. Empty: no positions.
  std::vector<float> inverse_frequencies;
  float rotary_scaling = 1;  // of sine and cosine
  bool rotary_interleaved = false;
  int64_t d_conv = 0;  // taps over packed q, k and v; 0: no convolution
  bool conv_bias = true;
  float key_multiplier = 1;
  int64_t adapter_rank = 0;  // of q, k and v each; 0: no adapters

  // Every field, see Mamba2Config.
  [[nodiscard]] auto fields() const {
    return std::tie(d_in, d_model, heads, kv_heads, head_dim, scale, qkv_bias, out_bias, inverse_frequencies,
                    rotary_scaling, rotary_interleaved, d_conv, conv_bias, key_multiplier, adapter_rank);
  }
  [[nodiscard]] int64_t q_dim() const { return heads * head_dim; }
  [[nodiscard]] int64_t kv_dim() const { return kv_heads * head_dim; }
  [[nodiscard]] int64_t qkv_dim() const { return q_dim() + 2 * kv_dim(); }
};

class Attention {
 public:
  // An Error when heads cannot be grouped or turned so.
  Attention(const AttentionConfig& config, int64_t layer, StateSpec& spec);

  // The output [T, d_model] for the normed h [T, d_in] goes where `out` says.
  void forward(Context& ctx, const Tensor& h, const Epilogue& out, const Pass& pass) const;

  void visit(const std::string& prefix, const ParameterVisitor& f);
  static constexpr std::string_view kName = "attention";

 private:
  AttentionConfig config_;
  int64_t layer_;
  Linear qkv_proj_, out_proj_;
  CausalConv1d conv_;
  Linear adapter_a_;                 // [3 · rank, d_in], rows of q, k and v
  std::array<Linear, 3> adapter_b_;  // [q_dim | kv_dim, rank]
  // Entries of the state spec: [d_conv − 1, qkv_dim] if there is a convolution, and of every token [kv_heads,
  // head_dim]. Keys are kept with their positions applied.
  int64_t conv_state_ = 0, key_state_ = 0, value_state_ = 0;
};

}  // namespace elapid
