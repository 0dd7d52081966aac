#include "elapid/model/families/names.h"
#include "elapid/model/families/read.h"

// transformers' FalconH1ForCausalLM: L × ([Mamba2, Attention] side by side, [Mlp]), with a multiplier nearly
// everywhere.

namespace elapid {
namespace {

std::vector<float> read_multipliers(ConfigReader& reader, const std::string& key, size_t count) {
  const Json& list = reader.value(key);
  std::vector<float> all(count, 1);
  if (list.is_null()) return all;
  const std::string what = reader.name_of_key(key);
  require(list.is_array() && list.size() == count, what, ": must be ", count, " numbers, got ", describe(list));
  for (size_t i = 0; i < count; ++i) all[i] = static_cast<float>(finite_number(list[i], what));
  return all;
}

ModelConfig read_config(const Json& json, const std::string& what) {
  constexpr int64_t kMost = ConfigReader::kMostSize;
  ConfigReader reader(json, what);
  const auto multiplier = [&](const char* key) { return static_cast<float>(reader.number(key, 1)); };
  ModelConfig config;
  config.family = kFalconH1Family.model_type;
  config.vocab = reader.integer("vocab_size", 128000, 1, ConfigReader::kMostVocab);
  config.d_model = reader.integer("hidden_size", 4096, 1, kMost);
  config.norm.eps = read_epsilon(reader, "rms_norm_eps", 1e-5);
  config.tied_head = reader.boolean("tie_word_embeddings", false);
  config.embedding_scale = multiplier("embedding_multiplier");
  config.logit_scale = multiplier("lm_head_multiplier");

  const int64_t expanded = config.d_model * reader.integer("mamba_expand", 2, 1, 64);
  const bool says_width = reader.value("mamba_d_ssm").is_null() && json.contains("mamba_d_ssm");
  const int64_t d_inner = reader.integer("mamba_d_ssm", says_width ? expanded : 1024, 1, kMost);
  Mamba2Config mixer = read_bamba_mixer(reader, config.d_model, d_inner, config.norm.eps);
  mixer.gated_norm = reader.boolean("mamba_rms_norm", false);
  mixer.norm_before_gate = reader.boolean("mamba_norm_before_gate", true);
  mixer.norm_groups = mixer.groups;
  const std::vector<float> sections = read_multipliers(reader, "ssm_multipliers", 5);
  std::copy(sections.begin(), sections.end(), mixer.multipliers.begin());
  mixer.out_bias = reader.boolean("projectors_bias", false);

  AttentionConfig attention = read_attention(reader, config.d_model, 32, 8);
  attention.qkv_bias = attention.out_bias = reader.boolean("attention_bias", false);
  attention.key_multiplier = multiplier("key_multiplier");
  read_rope(reader, attention, 100000, 1);

  const std::vector<float> around = read_multipliers(reader, "mlp_multipliers", 2);
  const MlpConfig mlp{.d_model = config.d_model,
                      .d_ff = reader.integer("intermediate_size", 14336, 1, kMost),
                      .d_out = config.d_model,
                      .act = read_activation(reader, "hidden_act", "silu"),
                      .bias = reader.boolean("mlp_bias", false),
                      .gate_multiplier = around[0]};
  const BodyUse mamba(mixer, multiplier("ssm_in_multiplier"), multiplier("ssm_out_multiplier"));
  const BodyUse attends(attention, multiplier("attention_in_multiplier"), multiplier("attention_out_multiplier"));
  const int64_t layers = reader.integer("num_hidden_layers", 32, 1, ConfigReader::kMostLayers);
  for (int64_t i = 0; i < layers; ++i) {
    config.blocks.push_back({.bodies = {mamba, attends}, .layer = i});
    config.blocks.push_back({.bodies = {BodyUse(mlp, 1, around[1])}, .layer = i});
  }
  reader.harmless({"layers_block_type", "layer_types", "num_logits_to_keep", "mamba_use_mlp", "attn_layer_indices"});
  reader.finish(config);
  return config;
}

NameTable names(const ModelConfig& config) {
  NameTable table;
  name_decoder(table, config, "pre_ff_layernorm.weight", "feed_forward.", "model.final_layernorm.weight");
  return table;
}

}  // namespace

const Family kFalconH1Family{"falcon_h1", read_config, names};

}  // namespace elapid
