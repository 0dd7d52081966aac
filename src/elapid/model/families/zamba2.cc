#include "elapid/model/families/names.h"
#include "elapid/model/families/read.h"

#include <cmath>

// transformers' Zamba2ForCausalLM: layers of [Mamba2 with a norm per group]. Before some of them a shared transformer
// runs beside the residual stream: attention over the residual beside the embedding, an MLP over what it says, and a
// matrix of the layer's own; the layer's mixer then reads the residual plus that. num_mem_blocks transformers take
// turns; each use adds adapters of its own.

namespace elapid {
namespace {

constexpr const char* kMamba = "linear_attention";
constexpr const char* kHybrid = "hybrid";

std::vector<std::string> default_layers() {
  std::vector<std::string> layers(54, kMamba);
  for (const size_t i : {6u, 12u, 18u, 24u, 30u, 36u, 42u, 47u, 51u}) layers[i] = kHybrid;
  return layers;
}

ModelConfig read_config(const Json& json, const std::string& what) {
  constexpr int64_t kMost = ConfigReader::kMostSize;
  ConfigReader reader(json, what);
  ModelConfig config;
  config.family = kZamba2Family.model_type;
  config.vocab = reader.integer("vocab_size", 32000, 1, ConfigReader::kMostVocab);
  config.d_model = reader.integer("hidden_size", 2560, 1, kMost);
  config.norm.eps = read_epsilon(reader, "rms_norm_eps", 1e-5);
  config.tied_head = reader.boolean("tie_word_embeddings", true);

  const bool bias = reader.boolean("add_bias_linear", false);
  const int64_t d_inner = config.d_model * reader.integer("mamba_expand", 2, 1, 64);
  Mamba2Config mixer{.d_model = config.d_model,
                     .d_state = reader.integer("mamba_d_state", 64, 1, kMost),
                     .heads = reader.integer("n_mamba_heads", 8, 1, kMost),
                     .groups = reader.integer("mamba_ngroups", 1, 1, kMost),
                     .d_conv = reader.integer("mamba_d_conv", 4, 1, kMostConvTaps),
                     .in_bias = bias,
                     .out_bias = bias,
                     .conv_bias = reader.boolean("use_conv_bias", true),
                     .norm_eps = 1e-5f};  // whatever rms_norm_eps says
  mixer.head_dim = d_inner / mixer.heads;
  mixer.norm_groups = mixer.groups;
  check_mixer(reader, "n_mamba_heads", mixer, d_inner);
  read_time_step_floor(reader, mixer);

  AttentionConfig attention = read_attention(reader, config.d_model, 32, 0, 0, 2 * config.d_model);
  // Half of head_dim is the width that one of the two streams has.
  attention.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(attention.head_dim) / 2));
  if (reader.boolean("use_mem_rope", false)) {
    read_rope(reader, attention, 10000, 1);
  } else {
    reader.harmless({"rope_parameters", "rope_scaling", "rope_theta"});
  }
  const int64_t rank = reader.integer("adapter_rank", 128, 1, kMost);
  if (reader.boolean("use_shared_attention_adapter", false)) attention.adapter_rank = rank;
  MlpConfig mlp{.d_model = config.d_model,
                .d_ff = reader.integer("intermediate_size", 4 * config.d_model, 1, kMost),
                .d_out = config.d_model,
                .act = read_activation(reader, "hidden_act", "gelu"),
                .bias = bias,
                .post_proj = true,
                .adapter_rank = rank};

  using Reads = BlockConfig::Reads;
  const int64_t count = reader.integer("num_hidden_layers", 54, 1, ConfigReader::kMostLayers);
  const std::vector<std::string> layers =
      read_layer_types(reader, {"layers_block_type", "layer_types"}, count, {kMamba, kHybrid}, default_layers());
  require(layers.size() == static_cast<size_t>(count), reader.name_of_key("layers_block_type"),
          ": must be given for other than ", layers.size(), " layers, got ", count);
  for (int64_t i = 0; i < count; ++i) {
    const bool hybrid = layers[static_cast<size_t>(i)] == kHybrid;
    if (hybrid) {
      config.blocks.push_back({.bodies = {attention},
                               .layer = i,
                               .reads = Reads::residual_beside_embedding,
                               .writes = BlockConfig::Writes::side});
      config.blocks.push_back({.bodies = {mlp}, .layer = i, .reads = Reads::side, .writes = BlockConfig::Writes::side});
    }
    config.blocks.push_back(
        {.bodies = {mixer}, .layer = i, .reads = hybrid ? Reads::residual_plus_side : Reads::residual});
  }
  config.shared_blocks = reader.integer("num_mem_blocks", 1, 1, ConfigReader::kMostLayers);
  reader.harmless({"attention_head_dim", "attention_hidden_size", "chunk_size", "hybrid_layer_ids", "kv_channels",
                   "mamba_headdim", "max_position_embeddings", "num_logits_to_keep", "num_query_groups",
                   "time_step_floor", "time_step_max", "use_long_context", "use_mamba_kernels", "use_mem_eff_path",
                   "ft_lora", "use_shared_mlp_adapter"});
  reader.finish(config);
  return config;
}

NameTable names(const ModelConfig& config) {
  NameTable table;
  table.rename("embedding.weight", "model.embed_tokens.weight");
  table.rename("norm.weight", "model.final_layernorm.weight");
  table.rename("head.weight", "lm_head.weight");
  std::vector<int64_t> first_use;  // of each shared transformer: the layer under which checkpoints keep it
  int64_t use = -1;                // which of the hybrid layers this is
  for (size_t i = 0; i < config.blocks.size(); ++i) {
    const BlockConfig& block = config.blocks[i];
    const std::string ours = concat("blocks.", i, "."), layer = concat("model.layers.", block.layer, ".");
    const BodyConfig& body = block.bodies.front().config;
    if (const auto* attention = std::get_if<AttentionConfig>(&body)) {
      ++use;
      if (use < config.shared_blocks) first_use.push_back(block.layer);
      const std::string shared =
          concat("model.layers.", first_use[static_cast<size_t>(use % config.shared_blocks)], ".shared_transformer.");
      table.rename(ours + "norm.weight", shared + "input_layernorm.weight");
      name_body(table, body, ours, shared + "self_attn.");
      if (attention->adapter_rank > 0) {
        const std::string to = ours + "attention.adapter.";
        for (const char* part : {"q", "k", "v"}) {
          const std::string from = concat(shared, "self_attn.linear_", part, "_adapter_list.", use, ".");
          table.append(to + "a.weight", from + "0.weight", {attention->adapter_rank, attention->d_in});
          table.rename(concat(to, "b_", part, ".weight"), from + "1.weight");
        }
      }
    } else if (const auto* mlp = std::get_if<MlpConfig>(&body)) {
      const std::string shared =
          concat("model.layers.", first_use[static_cast<size_t>(use % config.shared_blocks)], ".shared_transformer.");
      const std::string from = shared + "feed_forward.", to = ours + "mlp.";
      table.rename(ours + "norm.weight", shared + "pre_ff_layernorm.weight");
      table.rename(to + "up_proj.weight", from + "gate_up_proj.weight");
      table.rename(to + "down_proj.weight", from + "down_proj.weight");
      if (mlp->bias) {
        table.rename(to + "up_proj.bias", from + "gate_up_proj.bias");
        table.rename(to + "down_proj.bias", from + "down_proj.bias");
      }
      const std::string adapter = concat(from, "gate_up_proj_adapter_list.", use, ".");
      table.rename(to + "adapter.a.weight", adapter + "0.weight");
      table.rename(to + "adapter.b.weight", adapter + "1.weight");
      table.rename(to + "post_proj.weight", layer + "linear.weight");
    } else {
      const std::string from = block.reads == BlockConfig::Reads::residual ? layer : layer + "mamba_decoder.";
      table.rename(ours + "norm.weight", from + "input_layernorm.weight");
      name_body(table, body, ours, from + "mamba.");
    }
  }
  return table;
}

}  // namespace

const Family kZamba2Family{"zamba2", read_config, names};

}  // namespace elapid
