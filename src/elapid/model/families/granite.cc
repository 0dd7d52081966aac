#include "elapid/core/error.h"
#include "elapid/model/families/names.h"
#include "elapid/model/families/read.h"

#include <cmath>

// transformers' GraniteMoeForCausalLM: L × ([Attention], [Moe]); and GraniteMoeHybridForCausalLM: L × ([Mamba2 or
// Attention], [Moe, Mlp]), where the Mlp is the expert that all tokens take, or [Mlp] alone without experts. Four
// multipliers: embedding, residual, softmax scale, logits.

namespace elapid {
namespace {

constexpr const char* kMambaLayer = "linear_attention";
constexpr const char* kAttentionLayer = "full_attention";

float read_multiplier(ConfigReader& reader, const std::string& key) {
  return static_cast<float>(reader.number(key, 1));
}

ModelConfig read_config(const Json& json, const std::string& what, const Family& family) {
  const bool hybrid = &family == &kGraniteMoeHybridFamily;
  constexpr int64_t kMost = ConfigReader::kMostSize;
  ConfigReader reader(json, what);
  ModelConfig config;
  config.family = family.model_type;
  config.vocab = reader.integer("vocab_size", 32000, 1, ConfigReader::kMostVocab);
  config.d_model = reader.integer("hidden_size", 4096, 1, kMost);
  config.norm.eps = read_epsilon(reader, "rms_norm_eps", 1e-6);
  config.tied_head = reader.boolean("tie_word_embeddings", false);
  config.embedding_scale = read_multiplier(reader, "embedding_multiplier");
  config.given_embedding_scale = config.embedding_scale;
  config.residual_scale = read_multiplier(reader, "residual_multiplier");
  const double logits_scaling = reader.number("logits_scaling", 1);
  config.logit_scale = static_cast<float>(1 / logits_scaling);
  require(std::isfinite(config.logit_scale), reader.name_of_key("logits_scaling"),
          ": must not be 0 or so small that its reciprocal is infinite, got ", logits_scaling);

  AttentionConfig attention = read_attention(reader, config.d_model, 32, 0);
  attention.scale = read_multiplier(reader, "attention_multiplier");
  attention.qkv_bias = attention.out_bias = reader.boolean("attention_bias", false);
  const std::string positions = reader.text("position_embedding_type", hybrid ? "nope" : "rope");
  require(positions == "rope" || positions == "nope" || (hybrid && positions.empty()),
          reader.name_of_key("position_embedding_type"), ": must be rope or nope, got ", quote(positions));
  if (positions == "rope") {
    read_rope(reader, attention, 10000, 1);
  } else {
    reader.harmless({"rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor"});
  }

  const Activation act = read_activation(reader, "hidden_act", "silu");
  const int64_t experts = reader.integer("num_local_experts", 8, hybrid ? 0 : 1, Moe::kMostExperts);
  MoeConfig moe{.d_model = config.d_model,
                .d_ff = reader.integer("intermediate_size", 11008, 1, kMost),
                .experts = experts,
                .top_k = reader.integer("num_experts_per_tok", 2, 0, Moe::kMostExperts),
                .act = act,
                .routing = Routing::softmax_of_top};
  require(experts == 0 || (moe.top_k >= 1 && moe.top_k <= experts), reader.name_of_key("num_experts_per_tok"),
          ": must be 1 to num_local_experts, ", experts, ", got ", moe.top_k);
  config.router_aux_loss_coef = static_cast<float>(reader.number("router_aux_loss_coef", 0.001));

  const int64_t layers = reader.integer("num_hidden_layers", 32, 1, ConfigReader::kMostLayers);
  std::vector<std::string> types(static_cast<size_t>(layers), kAttentionLayer);
  Mamba2Config mixer;
  MlpConfig shared;
  if (hybrid) {
    types = read_layer_types(reader, {"layer_types", "layers_block_type"}, layers, {kMambaLayer, kAttentionLayer},
                             std::vector<std::string>(static_cast<size_t>(layers), kMambaLayer));
    mixer = read_bamba_mixer(reader, config.d_model, config.d_model * reader.integer("mamba_expand", 2, 1, 64),
                             config.norm.eps);
    shared = {.d_model = config.d_model,
              .d_ff = reader.integer("shared_intermediate_size", 1024, 1, kMost),
              .d_out = config.d_model,
              .act = act};
  }
  for (int64_t i = 0; i < layers; ++i) {
    BlockConfig mixing{.layer = i}, experts_block{.layer = i};
    if (types[static_cast<size_t>(i)] == kMambaLayer) {
      mixing.bodies.emplace_back(mixer);
    } else {
      mixing.bodies.emplace_back(attention);
    }
    if (experts > 0) experts_block.bodies.emplace_back(moe);
    if (hybrid) experts_block.bodies.emplace_back(shared);
    config.blocks.push_back(std::move(mixing));
    config.blocks.push_back(std::move(experts_block));
  }
  reader.harmless({"output_router_logits", "max_position_embeddings", "layer_types", "layers_block_type"});
  reader.finish(config);
  return config;
}

NameTable names(const ModelConfig& config) {
  NameTable table;
  table.rename("embedding.weight", "model.embed_tokens.weight");
  table.rename("norm.weight", "model.norm.weight");
  table.rename("head.weight", "lm_head.weight");
  for (size_t i = 0; i < config.blocks.size(); ++i) {
    const BlockConfig& block = config.blocks[i];
    const std::string ours = concat("blocks.", i, "."), theirs = concat("model.layers.", block.layer, ".");
    table.rename(ours + "norm.weight",
                 theirs + (i % 2 == 0 ? "input_layernorm.weight" : "post_attention_layernorm.weight"));
    for (const BodyUse& use : block.bodies) {
      if (std::holds_alternative<Mamba2Config>(use.config)) {
        name_body(table, use.config, ours, theirs + "mamba.");
      } else if (std::holds_alternative<AttentionConfig>(use.config)) {
        name_body(table, use.config, ours, theirs + "self_attn.");
      } else if (std::holds_alternative<MlpConfig>(use.config)) {
        table.rename(ours + "mlp.up_proj.weight", theirs + "shared_mlp.input_linear.weight");
        table.rename(ours + "mlp.down_proj.weight", theirs + "shared_mlp.output_linear.weight");
      } else if (const auto* moe = std::get_if<MoeConfig>(&use.config)) {
        const std::string from = theirs + "block_sparse_moe.", to = ours + "moe.";
        table.rename(to + "router.weight", from + "router.layer.weight");
        // One tensor for all experts, one after another.
        const Shape up(moe->experts, 2 * moe->d_ff, moe->d_model), down(moe->experts, moe->d_model, moe->d_ff);
        for (int64_t e = 0; e < moe->experts; ++e) {
          const std::string expert = concat(to, "experts.", e, ".");
          table.rows(expert + "up_proj.weight", from + "input_linear.weight", up, e * up[1], up[1]);
          table.rows(expert + "down_proj.weight", from + "output_linear.weight", down, e * down[1], down[1]);
        }
      }
    }
  }
  return table;
}

ModelConfig read_moe(const Json& json, const std::string& what) { return read_config(json, what, kGraniteMoeFamily); }
ModelConfig read_hybrid(const Json& json, const std::string& what) {
  return read_config(json, what, kGraniteMoeHybridFamily);
}

}  // namespace

const Family kGraniteMoeFamily{"granitemoe", read_moe, names};
const Family kGraniteMoeHybridFamily{"granitemoehybrid", read_hybrid, names};

}  // namespace elapid
