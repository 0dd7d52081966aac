#include "elapid/model/families/names.h"

#include "elapid/core/error.h"

#include <initializer_list>

namespace elapid {
namespace {

void rename_all(NameTable& table, const std::string& ours, const std::string& theirs,
                std::initializer_list<const char*> parts) {
  for (const char* part : parts) table.rename(ours + part, theirs + part);
}

void name(NameTable& table, const Mamba1Config& c, const std::string& ours, const std::string& theirs) {
  rename_all(table, ours, theirs,
             {"in_proj.weight", "conv1d.weight", "x_proj.weight", "dt_proj.weight", "A_log", "D", "out_proj.weight"});
  table.rename(ours + "dt_bias", theirs + "dt_proj.bias");
  if (c.conv_bias) table.rename(ours + "conv1d.bias", theirs + "conv1d.bias");
  if (c.proj_bias) rename_all(table, ours, theirs, {"in_proj.bias", "out_proj.bias"});
  if (c.bcdt_norm_weights) {
    table.rename(ours + "dt_norm.weight", theirs + "dt_layernorm.weight");
    table.rename(ours + "B_norm.weight", theirs + "b_layernorm.weight");
    table.rename(ours + "C_norm.weight", theirs + "c_layernorm.weight");
  }
}

void name(NameTable& table, const Mamba2Config& c, const std::string& ours, const std::string& theirs) {
  rename_all(table, ours, theirs, {"in_proj.weight", "out_proj.weight"});
  name_mamba2_rest(table, c, ours, theirs);
}

void name(NameTable& table, const AttentionConfig& c, const std::string& ours, const std::string& theirs) {
  const int64_t rows[] = {c.heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim};
  const char* parts[] = {"q_proj.", "k_proj.", "v_proj."};
  for (int i = 0; i < 3; ++i) {
    table.append(ours + "qkv_proj.weight", concat(theirs, parts[i], "weight"), {rows[i], c.d_in});
    if (c.qkv_bias) table.append(ours + "qkv_proj.bias", concat(theirs, parts[i], "bias"), {rows[i]});
  }
  table.rename(ours + "out_proj.weight", theirs + "o_proj.weight");
  if (c.out_bias) table.rename(ours + "out_proj.bias", theirs + "o_proj.bias");
}

void name(NameTable& table, const MlpConfig& c, const std::string& ours, const std::string& theirs) {
  rename_all(table, ours, theirs, {"down_proj.weight"});
  if (c.bias) rename_all(table, ours, theirs, {"down_proj.bias"});
  for (const char* part : {"gate_proj.", "up_proj."}) {
    if (part[0] == 'g' && !c.gated) continue;
    table.append(ours + "up_proj.weight", concat(theirs, part, "weight"), {c.d_ff, c.d_model});
    if (c.bias) table.append(ours + "up_proj.bias", concat(theirs, part, "bias"), {c.d_ff});
  }
}

void name(NameTable& table, const MoeConfig& c, const std::string& ours, const std::string& theirs) {
  // Classes whose router has a correction call it a gate.
  table.rename(ours + "router.weight", theirs + (c.correction_bias ? "gate.weight" : "router.weight"));
  if (c.correction_bias) table.rename(ours + "correction_bias", theirs + "gate.e_score_correction_bias");
  const int64_t width = c.d_latent == 0 ? c.d_model : c.d_latent;
  if (c.d_latent > 0) {
    table.rename(ours + "latent_in.weight", theirs + "fc1_latent_proj.weight");
    table.rename(ours + "latent_out.weight", theirs + "fc2_latent_proj.weight");
    if (c.latent_bias) {
      table.rename(ours + "latent_in.bias", theirs + "fc1_latent_proj.bias");
      table.rename(ours + "latent_out.bias", theirs + "fc2_latent_proj.bias");
    }
  }
  for (int64_t e = 0; e < c.experts; ++e) {
    const std::string to = concat(ours, "experts.", e, "."), from = concat(theirs, "experts.", e, ".");
    if (c.gated) table.append(to + "up_proj.weight", from + "gate_proj.weight", {c.d_ff, width});
    table.append(to + "up_proj.weight", from + "up_proj.weight", {c.d_ff, width});
    table.rename(to + "down_proj.weight", from + "down_proj.weight");
  }
}

}  // namespace

void name_mamba2_rest(NameTable& table, const Mamba2Config& c, const std::string& ours, const std::string& theirs) {
  rename_all(table, ours, theirs, {"conv1d.weight", "A_log", "D", "dt_bias"});
  if (c.gated_norm) rename_all(table, ours, theirs, {"norm.weight"});
  if (c.conv_bias) rename_all(table, ours, theirs, {"conv1d.bias"});
  if (c.in_bias) rename_all(table, ours, theirs, {"in_proj.bias"});
  if (c.out_bias) rename_all(table, ours, theirs, {"out_proj.bias"});
}

void name_body(NameTable& table, const BodyConfig& body, const std::string& ours, const std::string& theirs) {
  std::visit(
      [&](const auto& c) {
        using Named = typename std::decay_t<decltype(c)>::Body;
        name(table, c, concat(ours, Named::kName, "."), theirs);
      },
      body);
}

NameTable backbone_names(const ModelConfig& config) {
  NameTable table;
  table.rename("embedding.weight", "backbone.embeddings.weight");
  table.rename("norm.weight", "backbone.norm_f.weight");
  table.rename("head.weight", "lm_head.weight");
  for (size_t i = 0; i < config.blocks.size(); ++i) {
    const std::string ours = concat("blocks.", i, "."), theirs = concat("backbone.layers.", i, ".");
    table.rename(ours + "norm.weight", theirs + "norm.weight");
    const std::vector<BodyUse>& bodies = config.blocks[i].bodies;
    name_body(table, bodies.front().config, ours, theirs + "mixer.");
    if (bodies.size() > 1) name_body(table, bodies[1].config, ours, theirs + "mixer.shared_experts.");
  }
  return table;
}

void name_decoder(NameTable& table, const ModelConfig& config, const std::string& second_norm,
                  const std::string& feeding, const std::string& final_norm) {
  table.rename("embedding.weight", "model.embed_tokens.weight");
  table.rename("norm.weight", final_norm);
  table.rename("head.weight", "lm_head.weight");
  for (size_t i = 0; i < config.blocks.size(); ++i) {
    const BlockConfig& block = config.blocks[i];
    const bool second = i > 0 && config.blocks[i - 1].layer == block.layer;
    const std::string ours = concat("blocks.", i, "."), theirs = concat("model.layers.", block.layer, ".");
    table.rename(ours + "norm.weight", theirs + (second ? second_norm : "input_layernorm.weight"));
    for (const BodyUse& use : block.bodies) {
      const bool attends = std::holds_alternative<AttentionConfig>(use.config);
      name_body(table, use.config, ours, theirs + (second ? feeding : attends ? "self_attn." : "mamba."));
    }
  }
}

}  // namespace elapid
