#include "elapid/nn/attention.h"

#include "elapid/core/error.h"
#include "elapid/ops/attention/attention.h"
#include "elapid/ops/rotary/rotary.h"

namespace elapid {

Attention::Attention(const AttentionConfig& c, int64_t layer, StateSpec& spec)
    : config_(c),
      layer_(layer),
      qkv_proj_{.in = c.d_in, .out = c.qkv_dim(), .has_bias = c.qkv_bias},
      out_proj_{.in = c.q_dim(), .out = c.d_model, .has_bias = c.out_bias},
      adapter_a_{.in = c.d_in, .out = 3 * c.adapter_rank},
      adapter_b_{{{.in = c.adapter_rank, .out = c.q_dim()},
                  {.in = c.adapter_rank, .out = c.kv_dim()},
                  {.in = c.adapter_rank, .out = c.kv_dim()}}} {
  require(c.kv_heads >= 1 && c.heads >= 1 && c.heads % c.kv_heads == 0, "attention: kv_heads must divide heads, ",
          c.heads, ", got ", c.kv_heads);
  const auto turned = 2 * static_cast<int64_t>(c.inverse_frequencies.size());
  require(c.head_dim >= 1 && turned <= c.head_dim, "attention: rotary must turn at most the ", c.head_dim,
          " elements of a head, got ", turned);
  conv_.silu = false;
  const auto declare = [&](StateEntry entry) {
    spec.entries.push_back(std::move(entry));
    return static_cast<int64_t>(spec.entries.size()) - 1;
  };
  if (c.d_conv > 0) conv_state_ = declare({"conv", layer, {c.d_conv - 1, c.qkv_dim()}});
  key_state_ = declare({"key", layer, {c.kv_heads, c.head_dim}, StateExtent::per_token});
  value_state_ = declare({"value", layer, {c.kv_heads, c.head_dim}, StateExtent::per_token});
}

void Attention::forward(Context& ctx, const Tensor& h, const Epilogue& out, const Pass& pass) const {
  const AttentionConfig& c = config_;
  const int64_t q_end = c.q_dim(), k_end = q_end + c.kv_dim(), v_end = k_end + c.kv_dim();
  Tensor qkv = qkv_proj_(ctx, h);  // [T, qkv_dim]
  if (c.adapter_rank > 0) {
    const Tensor low = adapter_a_(ctx, h);  // [T, 3 · rank]
    const std::array<Tensor, 3> parts = {qkv.columns(0, q_end), qkv.columns(q_end, k_end), qkv.columns(k_end, v_end)};
    for (size_t i = 0; i < parts.size(); ++i) {
      const auto from = static_cast<int64_t>(i) * c.adapter_rank;
      adapter_b_[i](ctx, low.columns(from, from + c.adapter_rank), {.add = parts[i], .out = parts[i]});
    }
  }
  if (c.d_conv > 0) qkv = causal_conv1d(ctx, qkv, conv_, pass.batch, pass.state(conv_state_));

  const auto turned = static_cast<int64_t>(c.inverse_frequencies.size());
  Rotary turns{.inverse_frequencies =
                   Tensor(const_cast<float*>(c.inverse_frequencies.data()), DType::f32, {turned}),  // read only
               .scaling = c.rotary_scaling,
               .interleaved = c.rotary_interleaved};
  const Tensor q = qkv.columns(0, q_end), k = qkv.columns(q_end, k_end), qk = qkv.columns(0, k_end);
  if (c.key_multiplier != 1) {
    if (turned > 0) rotary(ctx, q, c.heads, turns, pass.batch, q);
    turns.alpha = c.key_multiplier;
    rotary(ctx, k, c.kv_heads, turns, pass.batch, k);
  } else if (turned > 0) {
    rotary(ctx, qk, c.heads + c.kv_heads, turns, pass.batch, qk);
  }

  const AttentionInputs in{
      .q = q, .k = k, .v = qkv.columns(k_end, v_end), .heads = c.heads, .kv_heads = c.kv_heads, .scale = c.scale};
  const KvCache cache{pass.state(key_state_), pass.state(value_state_), pass.page_table(), pass.uploaded_table()};
  const Tensor y = attention(ctx, in, pass.batch, cache);  // [T, q_dim]
  if (pass.observer != nullptr && pass.observer->attentions) {
    for (int64_t s = 0; s < pass.batch.sequence_count(); ++s) {
      const Arena::Scope scope(ctx.arena);
      pass.observer->attentions(layer_, s, attention_weights(ctx, in, pass.batch, cache, s));
    }
  }
  out_proj_(ctx, y, out);
}

void Attention::visit(const std::string& prefix, const ParameterVisitor& f) {
  const AttentionConfig& c = config_;
  qkv_proj_.visit(prefix + "qkv_proj.", f);
  if (c.adapter_rank > 0) {
    adapter_a_.visit(prefix + "adapter.a.", f);
    adapter_b_[0].visit(prefix + "adapter.b_q.", f);
    adapter_b_[1].visit(prefix + "adapter.b_k.", f);
    adapter_b_[2].visit(prefix + "adapter.b_v.", f);
  }
  if (c.d_conv > 0) {
    f({prefix + "conv1d.weight", &conv_.weight, {c.qkv_dim(), 1, c.d_conv}, Role::conv_taps});
    if (c.conv_bias) f({prefix + "conv1d.bias", &conv_.bias, {c.qkv_dim()}, Role::vector});
  }
  out_proj_.visit(prefix + "out_proj.", f);
}

}  // namespace elapid
