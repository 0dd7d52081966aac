#include "elapid/model/families/names.h"
#include "elapid/model/families/read.h"

// transformers' NemotronHForCausalLM: every layer is one block, [Mamba2 with a norm per group], [Attention without
// positions], [Mlp] or [Moe, Mlp]. MLPs and experts are not gated.

namespace elapid {
namespace {

constexpr const char* kMamba = "linear_attention";
constexpr const char* kAttention = "full_attention";
constexpr const char* kExperts = "moe";
constexpr const char* kMlp = "mlp";

// Earlier releases spell the layers as one letter each.
std::vector<std::string> read_layers(ConfigReader& reader) {
  std::vector<std::string> layers = {kMamba, kExperts, kAttention, kMlp};
  const std::string pattern = reader.text("hybrid_override_pattern", "");
  if (!pattern.empty()) {
    layers.clear();
    for (const char c : pattern) {
      require(std::string_view("ME*-").find(c) != std::string_view::npos, reader.name_of_key("hybrid_override_pattern"),
              ": must consist of M, E, * and -, got ", quote(pattern));
      layers.emplace_back(c == 'M' ? kMamba : c == 'E' ? kExperts : c == '*' ? kAttention : kMlp);
    }
    require(layers.size() <= static_cast<size_t>(ConfigReader::kMostLayers),
            reader.name_of_key("hybrid_override_pattern"), ": must name at most ", ConfigReader::kMostLayers,
            " layers, got ", layers.size());
  }
  return read_layer_types(reader, {"layers_block_type", "layer_types"}, 0, {kMamba, kAttention, kExperts, kMlp},
                          layers);
}

ModelConfig read_config(const Json& json, const std::string& what) {
  constexpr int64_t kMost = ConfigReader::kMostSize;
  ConfigReader reader(json, what);
  ModelConfig config;
  config.family = kNemotronHFamily.model_type;
  config.vocab = reader.integer("vocab_size", 131072, 1, ConfigReader::kMostVocab);
  config.d_model = reader.integer("hidden_size", 4096, 1, kMost);
  config.norm.eps = read_epsilon(reader, "layer_norm_epsilon", 1e-5);
  config.tied_head = reader.boolean("tie_word_embeddings", false);

  Mamba2Config mixer{.d_model = config.d_model,
                     .d_state = reader.integer("ssm_state_size", 128, 1, kMost),
                     .heads = reader.integer("mamba_num_heads", 128, 1, kMost),
                     .head_dim = reader.integer("mamba_head_dim", 64, 1, kMost),
                     .groups = reader.integer("n_groups", 8, 1, kMost),
                     .d_conv = reader.integer("conv_kernel", 4, 1, kMostConvTaps),
                     .in_bias = reader.boolean("use_bias", false),
                     .conv_bias = reader.boolean("use_conv_bias", true),
                     .norm_eps = config.norm.eps};
  mixer.out_bias = mixer.in_bias;
  mixer.norm_groups = mixer.groups;
  check_mixer(reader, "mamba_num_heads", mixer, mixer.heads * mixer.head_dim);
  require(read_activation(reader, "mamba_hidden_act", "silu") == Activation::silu,
          reader.name_of_key("mamba_hidden_act"), ": must be silu, got ", describe(reader.value("mamba_hidden_act")));
  read_time_step_floor(reader, mixer);

  AttentionConfig attention = read_attention(reader, config.d_model, 32, 8, 128);
  reader.harmless({"attention_bias"});  // the class builds its projections without, whatever this says

  const Activation act = read_activation(reader, "mlp_hidden_act", "relu2");
  const bool bias = reader.boolean("mlp_bias", false);
  const MlpConfig mlp{.d_model = config.d_model,
                      .d_ff = reader.integer("intermediate_size", 21504, 1, kMost),
                      .d_out = config.d_model,
                      .act = act,
                      .gated = false,
                      .bias = bias};
  MlpConfig shared = mlp;
  shared.d_ff = reader.integer("moe_shared_expert_intermediate_size", 7688, 1, kMost);
  MoeConfig moe{.d_model = config.d_model,
                .d_ff = reader.integer("moe_intermediate_size", 7688, 1, kMost),
                .experts = reader.integer("n_routed_experts", 8, 1, Moe::kMostExperts),
                .top_k = reader.integer("num_experts_per_tok", 2, 1, Moe::kMostExperts),
                .act = act,
                .gated = false,
                .routing = Routing::sigmoid_groups,
                .groups = reader.integer("n_group", 1, 1, Moe::kMostExperts),
                .top_groups = reader.integer("topk_group", 1, 1, Moe::kMostExperts),
                .normalize = reader.boolean("norm_topk_prob", true),
                .routed_scale = static_cast<float>(reader.number("routed_scaling_factor", 1)),
                .correction_bias = true,
                .d_latent = reader.integer("moe_latent_size", 0, 1, kMost),
                .latent_bias = bias};
  const std::vector<std::string> layers = read_layers(reader);
  for (size_t i = 0; i < layers.size(); ++i) {
    BlockConfig block{.layer = static_cast<int64_t>(i)};
    if (layers[i] == kMamba) block.bodies = {mixer};
    if (layers[i] == kAttention) block.bodies = {attention};
    if (layers[i] == kMlp) block.bodies = {mlp};
    if (layers[i] == kExperts) block.bodies = {moe, shared};
    config.blocks.push_back(std::move(block));
  }
  // Layers that predict further tokens are no part of the model that scores the next one.
  reader.harmless({"chunk_size",
                   "expand",
                   "hidden_dropout",
                   "hybrid_override_pattern",
                   "mamba_proj_bias",
                   "mamba_ssm_cache_dtype",
                   "max_position_embeddings",
                   "moe_shared_expert_overlap",
                   "mtp_hybrid_override_pattern",
                   "mtp_layers_block_type",
                   "n_shared_experts",
                   "num_hidden_layers",
                   "num_logits_to_keep",
                   "num_nextn_predict_layers",
                   "num_query_groups",
                   "rescale_prenorm_residual",
                   "residual_in_fp32",
                   "sliding_window",
                   "time_step_floor",
                   "time_step_limit",
                   "time_step_max",
                   "use_mamba_kernels",
                   "rope_theta",
                   "rms_norm_eps"});
  reader.finish(config);
  return config;
}

bool ignores(std::string_view name) { return name.starts_with("mtp."); }

}  // namespace

const Family kNemotronHFamily{"nemotron_h", read_config, backbone_names, ignores};

}  // namespace elapid
