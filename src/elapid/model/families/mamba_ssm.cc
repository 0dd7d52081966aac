#include "elapid/core/error.h"
#include "elapid/model/families/names.h"
#include "elapid/model/families/read.h"
#include "elapid/model/families/rope.h"

#include <cmath>

// The original checkpoints of state-spaces/mamba (mamba_ssm's MambaLMHeadModel), whose config.json has no model_type:
// layers of [Mamba1], [Mamba2] or [Attention], each followed by [Mlp] when d_intermediate is given. Also Mistral's
// layout of the same model: params.json beside consolidated.safetensors.

namespace elapid {
namespace {

constexpr int64_t kMost = ConfigReader::kMostSize;
constexpr float kEps = 1e-5f;  // of every norm, in every release

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// modules/mamba_simple.py
Mamba1Config read_mamba1(ConfigReader& reader, int64_t d_model) {
  Mamba1Config mixer =
      read_mamba1_mixer(reader, {"d_state", "d_conv", "dt_rank", "expand", "bias", "conv_bias"}, d_model);
  reader.harmless({"dt_init", "dt_init_floor", "dt_max", "dt_min", "dt_scale", "use_fast_path"});
  reader.finish_part();
  return mixer;
}

// modules/mamba2.py
struct Mamba2Layer {
  Mamba2Config mixer;
  int64_t d_mlp = 0;  // of the gated MLP that shares in_proj and out_proj with the mixer
};

Mamba2Layer read_mamba2(ConfigReader& reader, int64_t d_model) {
  Mamba2Layer layer;
  Mamba2Config& mixer = layer.mixer;
  mixer = {.d_model = d_model,
           .d_state = reader.integer("d_state", 128, 1, kMost),
           .head_dim = reader.integer("headdim", 64, 1, kMost),
           .groups = reader.integer("ngroups", 1, 1, kMost),
           .d_conv = reader.integer("d_conv", 4, 1, kMostConvTaps),
           .in_bias = reader.boolean("bias", false),
           .conv_bias = reader.boolean("conv_bias", true),
           .norm_eps = kEps,
           .gated_norm = reader.boolean("rmsnorm", true),
           .norm_before_gate = reader.boolean("norm_before_gate", false),
           .d_per_channel = reader.boolean("D_has_hdim", false)};
  mixer.out_bias = mixer.in_bias;
  mixer.norm_groups = mixer.groups;
  const int64_t d_inner = d_model * reader.integer("expand", 2, 1, 64);
  const int64_t d_ssm = reader.integer("d_ssm", d_inner, 1, d_inner);
  require(d_ssm % mixer.head_dim == 0, reader.name_of_key("headdim"), ": must divide d_ssm, ", d_ssm, ", got ",
          mixer.head_dim);
  mixer.heads = d_ssm / mixer.head_dim;
  layer.d_mlp = d_inner - d_ssm;
  check_mixer(reader, "headdim", mixer, d_ssm);
  read_time_step_limit(reader, "dt_limit", mixer);
  require(layer.d_mlp == 0 || !mixer.in_bias, reader.name_of_key("bias"), ": must be false when d_ssm is below ",
          d_inner, ", got true");
  reader.harmless({"A_init_range", "chunk_size", "conv_init", "dt_init_floor", "dt_max", "dt_min", "use_mem_eff_path"});
  reader.finish_part();
  return layer;
}

// modules/mha.py
struct AttentionLayer {
  AttentionConfig attention;
  int64_t d_mlp = 0;  // of the gated MLP beside it, which shares in_proj and out_proj
};

AttentionLayer read_attention_layer(ConfigReader& reader, int64_t d_model) {
  AttentionLayer layer;
  AttentionConfig& attention = layer.attention;
  attention = {.d_in = d_model, .d_model = d_model};
  attention.heads = reader.integer("num_heads", 1, 1, 1 << 16);
  attention.kv_heads = reader.integer("num_heads_kv", attention.heads, 1, 1 << 16);
  require(attention.heads % attention.kv_heads == 0, reader.name_of_key("num_heads_kv"), ": must divide num_heads, ",
          attention.heads, ", got ", attention.kv_heads);
  attention.head_dim = reader.integer("head_dim", d_model / attention.heads, 1, 1 << 16);
  attention.scale =
      static_cast<float>(reader.number("softmax_scale", 1 / std::sqrt(static_cast<double>(attention.head_dim))));
  attention.qkv_bias = reader.boolean("qkv_proj_bias", true);
  attention.out_bias = reader.boolean("out_proj_bias", true);
  attention.d_conv = reader.integer("d_conv", 0, 0, kMostConvTaps);
  attention.conv_bias = attention.d_conv > 0;  // whatever the projections have
  require(reader.boolean("causal", false), reader.name_of_key("causal"), ": must be true, got false");
  const int64_t rotary_dim = reader.integer("rotary_emb_dim", 0, 0, attention.head_dim);
  attention.rotary_interleaved = reader.boolean("rotary_emb_interleaved", false);
  const Json rope{{"rope_type", "default"}, {"rope_theta", reader.number("rotary_emb_base", 10000)}};
  set_rope(attention, rope, rotary_dim, 0, reader.name_of_key("rotary_emb_dim"));
  layer.d_mlp = round_up(reader.integer("mlp_dim", 0, 0, kMost), 256) / 2;
  require(layer.d_mlp == 0 || !attention.out_bias, reader.name_of_key("mlp_dim"),
          ": must be 0 where out_proj has a bias, got ", 2 * layer.d_mlp);
  reader.harmless({"dropout", "use_flash_attn"});
  reader.finish_part();
  return layer;
}

// What shares a mixer's projections: gate and up, no biases of its own.
MlpConfig beside(int64_t d_model, int64_t d_mlp) { return {.d_model = d_model, .d_ff = d_mlp, .d_out = d_model}; }

ModelConfig read_config(const Json& json, const std::string& what) {
  ConfigReader reader(json, what);
  ModelConfig config;
  config.family = kMambaSsmFamily.model_type;
  config.d_model = reader.integer("d_model", 2560, 1, kMost);
  config.tokens = reader.integer("vocab_size", 50277, 1, ConfigReader::kMostVocab - 65536);
  config.vocab = round_up(config.tokens, reader.integer("pad_vocab_size_multiple", 8, 1, 65536));
  config.norm = {reader.boolean("rms_norm", true) ? NormKind::rms : NormKind::layer, kEps};
  config.tied_head = reader.boolean("tie_embeddings", true);
  const int64_t layers = reader.integer("n_layer", 64, 1, ConfigReader::kMostLayers);

  const Json none = Json::object();
  const Json& ssm = reader.value("ssm_cfg");
  ConfigReader mixer_reader(ssm.is_null() ? none : ssm, reader.name_of_key("ssm_cfg"));
  const std::string kind = mixer_reader.text("layer", "Mamba1");
  require(kind == "Mamba1" || kind == "Mamba2", mixer_reader.name_of_key("layer"), ": must be Mamba1 or Mamba2, got ",
          quote(kind));
  Mamba1Config mamba1;
  Mamba2Layer mamba2;
  if (kind == "Mamba1") {
    mamba1 = read_mamba1(mixer_reader, config.d_model);
  } else {
    mamba2 = read_mamba2(mixer_reader, config.d_model);
  }
  std::vector<bool> attends(static_cast<size_t>(layers), false);
  for (const int64_t i : reader.integers("attn_layer_idx")) {
    require(i >= 0 && i < layers, reader.name_of_key("attn_layer_idx"), ": must be layers from 0 to ", layers - 1,
            ", got ", i);
    attends[static_cast<size_t>(i)] = true;
  }
  const Json& attn = reader.value("attn_cfg");
  AttentionLayer attention;
  if (std::find(attends.begin(), attends.end(), true) != attends.end()) {
    ConfigReader attention_reader(attn.is_null() ? none : attn, reader.name_of_key("attn_cfg"));
    attention = read_attention_layer(attention_reader, config.d_model);
  }
  const int64_t d_intermediate = round_up(reader.integer("d_intermediate", 0, 0, kMost), 128);

  for (int64_t i = 0; i < layers; ++i) {
    BlockConfig mixing{.layer = i};
    if (attends[static_cast<size_t>(i)]) {
      mixing.bodies.emplace_back(attention.attention);
      if (attention.d_mlp > 0) mixing.bodies.emplace_back(beside(config.d_model, attention.d_mlp));
    } else if (kind == "Mamba1") {
      mixing.bodies.emplace_back(mamba1);
    } else {
      mixing.bodies.emplace_back(mamba2.mixer);
      if (mamba2.d_mlp > 0) mixing.bodies.emplace_back(beside(config.d_model, mamba2.d_mlp));
    }
    config.blocks.push_back(std::move(mixing));
    if (d_intermediate > 0) {
      config.blocks.push_back({.bodies = {beside(config.d_model, d_intermediate)}, .layer = i});
    }
  }
  reader.harmless({"fused_add_norm", "residual_in_fp32", "initializer_cfg"});
  reader.finish(config);
  return config;
}

// Mistral's params.json says the same of a Mamba-2 model in other words (mistral-inference, MambaArgs).
ModelConfig read_mistral(const Json& json, const std::string& what) {
  ConfigReader reader(json, what);
  Json config = Json::object();
  config["d_model"] = reader.integer("dim", 0, 1, kMost);
  config["n_layer"] = reader.integer("n_layers", 0, 1, ConfigReader::kMostLayers);
  config["vocab_size"] = reader.integer("vocab_size", 0, 1, ConfigReader::kMostVocab - 65536);
  config["pad_vocab_size_multiple"] = reader.integer("pad_vocab_size_multiple", 8, 1, 65536);
  config["tie_embeddings"] = reader.boolean("tie_embeddings", false);
  config["rms_norm"] = reader.boolean("rms_norm", true);
  config["ssm_cfg"] = {{"layer", "Mamba2"}, {"ngroups", reader.integer("n_groups", 1, 1, kMost)}};
  config["quantization_config"] = reader.value("quantization_config");
  reader.harmless({"fused_add_norm", "residual_in_fp32", "model_type"});
  reader.finish_part();
  ModelConfig mapped = read_config(config, what);
  mapped.family = kMistralMambaFamily.model_type;
  return mapped;
}

// Rows or columns that the MLP beside a mixer takes of the mixer's projections.
struct Sharing {
  std::string ours, theirs;      // "blocks.3.", "backbone.layers.3.mixer."
  int64_t in_rows, out_columns;  // of the shared projections
  int64_t d_model;
};

void share(NameTable& table, const Sharing& s, const std::string& mixer, int64_t gate_row, int64_t up_row,
           int64_t mlp_column, int64_t d_mlp, int64_t mixer_row, int64_t mixer_rows, int64_t mixer_column) {
  const Shape in(s.in_rows, s.d_model), out(s.d_model, s.out_columns);
  table.rows(s.ours + mixer, s.theirs + "in_proj.weight", in, mixer_row, mixer_rows);
  table.rows(s.ours + "mlp.up_proj.weight", s.theirs + "in_proj.weight", in, gate_row, d_mlp);
  table.rows(s.ours + "mlp.up_proj.weight", s.theirs + "in_proj.weight", in, up_row, d_mlp);
  table.columns(s.ours + mixer.substr(0, mixer.find('.')) + ".out_proj.weight", s.theirs + "out_proj.weight", out,
                mixer_column, s.out_columns - d_mlp);
  table.columns(s.ours + "mlp.down_proj.weight", s.theirs + "out_proj.weight", out, mlp_column, d_mlp);
}

NameTable named(const ModelConfig& config, const std::string& prefix) {
  NameTable table;
  const std::string backbone = prefix + "backbone.";
  const bool has_bias = config.norm.kind == NormKind::layer;
  const auto norm = [&](const std::string& ours, const std::string& theirs) {
    table.rename(ours + "weight", theirs + "weight");
    if (has_bias) table.rename(ours + "bias", theirs + "bias");
  };
  table.rename("embedding.weight", backbone + "embedding.weight");
  norm("norm.", backbone + "norm_f.");
  table.rename("head.weight", prefix + "lm_head.weight");
  for (size_t i = 0; i < config.blocks.size(); ++i) {
    const BlockConfig& block = config.blocks[i];
    const bool second = i > 0 && config.blocks[i - 1].layer == block.layer;
    const std::string ours = concat("blocks.", i, "."), layer = concat(backbone, "layers.", block.layer, ".");
    norm(ours + "norm.", layer + (second ? "norm2." : "norm."));
    const BodyConfig& body = block.bodies.front().config;
    if (second) {
      const MlpConfig& mlp = std::get<MlpConfig>(body);
      const Shape fc1(2 * mlp.d_ff, mlp.d_model);
      // y, then gate
      table.rows(ours + "mlp.up_proj.weight", layer + "mlp.fc1.weight", fc1, mlp.d_ff, mlp.d_ff);
      table.rows(ours + "mlp.up_proj.weight", layer + "mlp.fc1.weight", fc1, 0, mlp.d_ff);
      table.rename(ours + "mlp.down_proj.weight", layer + "mlp.fc2.weight");
      continue;
    }
    const std::string mixer = layer + "mixer.";
    const int64_t d_mlp = block.bodies.size() > 1 ? std::get<MlpConfig>(block.bodies[1].config).d_ff : 0;
    if (const auto* m = std::get_if<Mamba2Config>(&body); m != nullptr && d_mlp > 0) {
      // z0, x0, z, x, B, C, dt; the MLP's y comes first
      const int64_t rows = m->d_inner() + m->conv_dim() + m->heads;
      share(table, {ours, mixer, 2 * d_mlp + rows, d_mlp + m->d_inner(), config.d_model}, "mamba2.in_proj.weight", 0,
            d_mlp, 0, d_mlp, 2 * d_mlp, rows, d_mlp);
      name_mamba2_rest(table, *m, ours + "mamba2.", mixer);
    } else if (const auto* a = std::get_if<AttentionConfig>(&body)) {
      const std::string to = ours + "attention.";
      const int64_t rows = (a->heads + 2 * a->kv_heads) * a->head_dim, width = a->heads * a->head_dim;
      if (d_mlp > 0) {
        // q, k, v, up, gate; the MLP's y comes last
        share(table, {ours, mixer, rows + 2 * d_mlp, width + d_mlp, config.d_model}, "attention.qkv_proj.weight",
              rows + d_mlp, rows, width, d_mlp, 0, rows, 0);
      } else {
        table.rename(to + "qkv_proj.weight", mixer + "in_proj.weight");
        table.rename(to + "out_proj.weight", mixer + "out_proj.weight");
      }
      if (a->qkv_bias) table.rows(to + "qkv_proj.bias", mixer + "in_proj.bias", Shape(rows + 2 * d_mlp), 0, rows);
      if (a->out_bias) table.rename(to + "out_proj.bias", mixer + "out_proj.bias");
      if (a->d_conv > 0) table.rename(to + "conv1d.weight", mixer + "conv1d.weight");
      if (a->conv_bias) table.rename(to + "conv1d.bias", mixer + "conv1d.bias");
    } else {
      name_body(table, body, ours, mixer);
    }
  }
  return table;
}

NameTable names(const ModelConfig& config) { return named(config, ""); }
NameTable mistral_names(const ModelConfig& config) { return named(config, "model."); }

}  // namespace

const Family kMambaSsmFamily{"mamba_ssm", read_config, names};
const Family kMistralMambaFamily{"mistral_mamba", read_mistral, mistral_names};

}  // namespace elapid
