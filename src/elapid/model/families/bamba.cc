#include "elapid/model/families/names.h"
#include "elapid/model/families/read.h"

// transformers' BambaForCausalLM: L × ([Mamba2 or Attention], [Mlp]); half of every head is rotated.

namespace elapid {
namespace {

ModelConfig read_config(const Json& json, const std::string& what) {
  constexpr int64_t kMost = ConfigReader::kMostSize;
  ConfigReader reader(json, what);
  ModelConfig config;
  config.family = kBambaFamily.model_type;
  config.vocab = reader.integer("vocab_size", 128000, 1, ConfigReader::kMostVocab);
  config.d_model = reader.integer("hidden_size", 4096, 1, kMost);
  config.norm.eps = read_epsilon(reader, "rms_norm_eps", 1e-5);
  config.tied_head = reader.boolean("tie_word_embeddings", false);
  const Mamba2Config mixer = read_bamba_mixer(
      reader, config.d_model, config.d_model * reader.integer("mamba_expand", 2, 1, 64), config.norm.eps);
  AttentionConfig attention = read_attention(reader, config.d_model, 32, 8);
  attention.qkv_bias = attention.out_bias = reader.boolean("attention_bias", false);
  read_rope(reader, attention, 10000, 0.5);
  const MlpConfig mlp{.d_model = config.d_model,
                      .d_ff = reader.integer("intermediate_size", 14336, 1, kMost),
                      .d_out = config.d_model,
                      .act = read_activation(reader, "hidden_act", "silu"),
                      .bias = reader.boolean("mlp_bias", false)};
  const int64_t layers = reader.integer("num_hidden_layers", 32, 1, ConfigReader::kMostLayers);
  std::vector<bool> attends(static_cast<size_t>(layers), false);
  for (const int64_t i : reader.integers("attn_layer_indices")) {
    require(i >= 0 && i < layers, reader.name_of_key("attn_layer_indices"), ": must be layers from 0 to ", layers - 1,
            ", got ", i);
    attends[static_cast<size_t>(i)] = true;
  }
  for (int64_t i = 0; i < layers; ++i) {
    BlockConfig mixing{.layer = i};
    if (attends[static_cast<size_t>(i)]) {
      mixing.bodies.emplace_back(attention);
    } else {
      mixing.bodies.emplace_back(mixer);
    }
    config.blocks.push_back(std::move(mixing));
    config.blocks.push_back({.bodies = {mlp}, .layer = i});
  }
  reader.harmless({"layers_block_type", "layer_types", "num_logits_to_keep", "z_loss_coefficient"});
  reader.finish(config);
  return config;
}

NameTable names(const ModelConfig& config) {
  NameTable table;
  name_decoder(table, config, "pre_ff_layernorm.weight", "feed_forward.", "model.final_layernorm.weight");
  return table;
}

}  // namespace

const Family kBambaFamily{"bamba", read_config, names};

}  // namespace elapid
