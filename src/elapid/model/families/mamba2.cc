#include "elapid/core/error.h"
#include "elapid/model/families/config_reader.h"
#include "elapid/model/families/family.h"
#include "elapid/model/families/names.h"
#include "elapid/model/families/read.h"

// transformers' Mamba2ForCausalLM (models/mamba2): n × [Mamba2]. Defaults are Mamba2Config's.

namespace elapid {
namespace {

ModelConfig read_config(const Json& json, const std::string& what) {
  ConfigReader reader(json, what);
  constexpr int64_t kMost = ConfigReader::kMostSize;
  ModelConfig config;
  config.family = kMamba2Family.model_type;
  config.vocab = reader.integer("vocab_size", 32768, 1, ConfigReader::kMostVocab);
  config.d_model = reader.integer("hidden_size", 4096, 1, kMost);
  config.norm.eps = read_epsilon(reader, "layer_norm_epsilon", 1e-5);
  config.tied_head = reader.boolean("tie_word_embeddings", false);

  Mamba2Config mixer{.d_model = config.d_model,
                     .d_state = reader.integer("state_size", 128, 1, kMost),
                     .heads = reader.integer("num_heads", 128, 1, kMost),
                     .head_dim = reader.integer("head_dim", 64, 1, kMost),
                     .groups = reader.integer("n_groups", 8, 1, kMost),
                     .d_conv = reader.integer("conv_kernel", 4, 1, kMostConvTaps),
                     .in_bias = reader.boolean("use_bias", false),
                     .conv_bias = reader.boolean("use_conv_bias", true),
                     .norm_eps = config.norm.eps};
  mixer.out_bias = mixer.in_bias;
  read_time_step_limit(reader, "time_step_limit", mixer);
  const int64_t expand = reader.integer("expand", 2, 1, kMost);
  check_mixer(reader, "num_heads", mixer, expand * config.d_model);
  require(read_activation(reader, "hidden_act", "silu") == Activation::silu, reader.name_of_key("hidden_act"),
          ": must be silu, got ", describe(reader.value("hidden_act")));
  require(reader.boolean("rms_norm", true), reader.name_of_key("rms_norm"), ": must be true, got false");
  // Published configs carry true, yet transformers always gates first; the folder is what transformers computes.
  if (reader.boolean("norm_before_gate", false)) {
    config.notes.emplace_back("norm_before_gate is ignored, as in transformers: the gate comes before the norm");
  }
  // Initialization, training and kernel choices. Chunks do not change the result, and the residual is always float32.
  reader.harmless({"chunk_size", "rescale_prenorm_residual", "residual_in_fp32", "time_step_floor",
                   "time_step_init_scheme", "time_step_max", "time_step_min", "time_step_rank", "time_step_scale"});
  const int64_t layers = reader.integer("num_hidden_layers", 64, 1, ConfigReader::kMostLayers);
  for (int64_t i = 0; i < layers; ++i) config.blocks.push_back({.bodies = {mixer}, .layer = i});
  reader.finish(config);
  return config;
}

}  // namespace

const Family kMamba2Family{"mamba2", read_config, backbone_names};

}  // namespace elapid
