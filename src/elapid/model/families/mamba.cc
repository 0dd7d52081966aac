#include "elapid/model/families/names.h"
#include "elapid/model/families/read.h"

// transformers' MambaForCausalLM and FalconMambaForCausalLM: n × [Mamba1]; Falcon-Mamba norms dt, B and C, without
// weights. Defaults are MambaConfig's and FalconMambaConfig's, which are the same.

namespace elapid {
namespace {

ModelConfig read_config(const Json& json, const std::string& what, const Family& family) {
  ConfigReader reader(json, what);
  ModelConfig config;
  config.family = family.model_type;
  config.vocab = reader.integer("vocab_size", 50280, 1, ConfigReader::kMostVocab);
  config.d_model = reader.integer("hidden_size", 768, 1, ConfigReader::kMostSize);
  config.norm.eps = read_epsilon(reader, "layer_norm_epsilon", 1e-5);
  config.tied_head = reader.boolean("tie_word_embeddings", true);
  Mamba1Config mixer = read_mamba1_mixer(
      reader, {"state_size", "conv_kernel", "time_step_rank", "expand", "use_bias", "use_conv_bias"}, config.d_model);
  if (&family == &kFalconMambaFamily) {
    mixer.bcdt_norm = true;
    mixer.bcdt_norm_eps = read_epsilon(reader, "mixer_rms_eps", 1e-6);
  }
  require(read_activation(reader, "hidden_act", "silu") == Activation::silu, reader.name_of_key("hidden_act"),
          ": must be silu, got ", describe(reader.value("hidden_act")));
  const int64_t inner = reader.integer("intermediate_size", mixer.d_inner, 1, ConfigReader::kMostSize);
  require(inner == mixer.d_inner, reader.name_of_key("intermediate_size"), ": must be expand · hidden_size, ",
          mixer.d_inner, ", got ", inner);
  // Initialization, kernel choices, and what the reference computes in float32 anyway. The original keys (d_model,
  // n_layer, ssm_cfg, …) that converted checkpoints carry along say the same again.
  reader.harmless({"rescale_prenorm_residual", "residual_in_fp32", "time_step_floor", "time_step_init_scheme",
                   "time_step_max", "time_step_min", "time_step_scale", "use_associative_scan", "use_falcon_mambapy",
                   "d_inner", "d_model", "fused_add_norm", "n_layer", "pad_vocab_size_multiple", "rms_norm",
                   "ssm_cfg"});
  const int64_t layers = reader.integer("num_hidden_layers", 32, 1, ConfigReader::kMostLayers);
  for (int64_t i = 0; i < layers; ++i) config.blocks.push_back({.bodies = {mixer}, .layer = i});
  reader.finish(config);
  return config;
}

ModelConfig read_mamba(const Json& json, const std::string& what) { return read_config(json, what, kMambaFamily); }
ModelConfig read_falcon(const Json& json, const std::string& what) {
  return read_config(json, what, kFalconMambaFamily);
}

}  // namespace

const Family kMambaFamily{"mamba", read_mamba, backbone_names};
const Family kFalconMambaFamily{"falcon_mamba", read_falcon, backbone_names};

}  // namespace elapid
