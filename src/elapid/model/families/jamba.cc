#include "elapid/model/families/names.h"
#include "elapid/model/families/read.h"

// transformers' JambaForCausalLM: L × ([Mamba1 with weighted norms of dt, B and C, or Attention without positions],
// [Mlp or Moe]).

namespace elapid {
namespace {

// Whether layer i is one of those at `offset` of every `period`.
struct Every {
  int64_t period, offset;
  bool operator()(int64_t i) const { return i % period == offset; }
};

Every read_every(ConfigReader& reader, const std::string& prefix, int64_t period, int64_t offset) {
  Every every{reader.integer(prefix + "_period", period, 1, ConfigReader::kMostLayers), 0};
  every.offset = reader.integer(prefix + "_offset", offset, 0, ConfigReader::kMostLayers);
  require(every.offset < every.period, reader.name_of_key(prefix + "_offset"), ": must be below the period, ",
          every.period, ", got ", every.offset);
  return every;
}

ModelConfig read_config(const Json& json, const std::string& what) {
  constexpr int64_t kMost = ConfigReader::kMostSize;
  ConfigReader reader(json, what);
  ModelConfig config;
  config.family = kJambaFamily.model_type;
  config.vocab = reader.integer("vocab_size", 65536, 1, ConfigReader::kMostVocab);
  config.d_model = reader.integer("hidden_size", 4096, 1, kMost);
  config.norm.eps = read_epsilon(reader, "rms_norm_eps", 1e-6);
  config.tied_head = reader.boolean("tie_word_embeddings", false);
  Mamba1Config mixer = read_mamba1_mixer(
      reader, {"mamba_d_state", "mamba_d_conv", "mamba_dt_rank", "mamba_expand", "mamba_proj_bias", "mamba_conv_bias"},
      config.d_model);
  mixer.bcdt_norm = mixer.bcdt_norm_weights = true;
  mixer.bcdt_norm_eps = config.norm.eps;
  const AttentionConfig attention = read_attention(reader, config.d_model, 32, 8);
  const Activation act = read_activation(reader, "hidden_act", "silu");
  const int64_t d_ff = reader.integer("intermediate_size", 14336, 1, kMost);
  const MlpConfig mlp{.d_model = config.d_model, .d_ff = d_ff, .d_out = config.d_model, .act = act};
  MoeConfig moe{.d_model = config.d_model,
                .d_ff = d_ff,
                .experts = reader.integer("num_experts", 16, 1, Moe::kMostExperts),
                .top_k = reader.integer("num_experts_per_tok", 2, 1, Moe::kMostExperts),
                .act = act,
                .routing = Routing::top_of_softmax};
  config.router_aux_loss_coef = static_cast<float>(reader.number("router_aux_loss_coef", 0.001));
  const Every attends = read_every(reader, "attn_layer", 8, 4), has_experts = read_every(reader, "expert_layer", 2, 1);
  const int64_t layers = reader.integer("num_hidden_layers", 32, 1, ConfigReader::kMostLayers);
  for (int64_t i = 0; i < layers; ++i) {
    BlockConfig mixing{.layer = i}, feeding{.layer = i};
    if (attends(i)) {
      mixing.bodies.emplace_back(attention);
    } else {
      mixing.bodies.emplace_back(mixer);
    }
    if (has_experts(i) && moe.experts > 1) {
      feeding.bodies.emplace_back(moe);
    } else {
      feeding.bodies.emplace_back(mlp);
    }
    config.blocks.push_back(std::move(mixing));
    config.blocks.push_back(std::move(feeding));
  }
  reader.harmless({"layers_block_type", "layer_types", "num_logits_to_keep", "output_router_logits",
                   "use_associative_scan", "use_mamba_kernels", "sliding_window"});
  reader.finish(config);
  return config;
}

NameTable names(const ModelConfig& config) {
  NameTable table;
  name_decoder(table, config, "pre_ff_layernorm.weight", "feed_forward.", "model.final_layernorm.weight");
  return table;
}

}  // namespace

const Family kJambaFamily{"jamba", read_config, names};

}  // namespace elapid
