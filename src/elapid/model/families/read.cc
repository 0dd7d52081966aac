#include "elapid/model/families/read.h"

#include "elapid/core/error.h"
#include "elapid/model/families/rope.h"

#include <algorithm>
#include <cmath>

namespace elapid {
namespace {

constexpr int64_t kMost = ConfigReader::kMostSize;

}  // namespace

float read_epsilon(ConfigReader& reader, const std::string& key, double otherwise) {
  const auto eps = static_cast<float>(reader.number(key, otherwise));
  require(eps >= 0 && std::isfinite(eps), reader.name_of_key(key), ": must be finite and not negative, got ", eps);
  return eps;
}

Activation read_activation(ConfigReader& reader, const std::string& key, const std::string& otherwise) {
  const std::string name = reader.text(key, otherwise);
  if (name == "silu" || name == "swish") return Activation::silu;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_pytorch_tanh" || name == "gelu_new") return Activation::gelu_tanh;
  if (name == "relu") return Activation::relu;
  if (name == "relu2") return Activation::relu2;
  fail(concat(reader.name_of_key(key), ": must be silu, gelu, gelu_pytorch_tanh, relu or relu2, got ", quote(name)));
}

void read_time_step_limit(ConfigReader& reader, const std::string& key, Mamba2Config& mixer) {
  const Json& limit = reader.value(key);
  if (limit.is_null()) return;
  const std::string what = reader.name_of_key(key);
  require(limit.is_array() && limit.size() == 2, what, ": must be two numbers, got ", describe(limit));
  mixer.dt_min = static_cast<float>(json_number(limit[0], what));
  mixer.dt_max = static_cast<float>(json_number(limit[1], what));
  require(std::isfinite(mixer.dt_min) && mixer.dt_min <= mixer.dt_max, what,
          ": must be finite and not above its end, got ", mixer.dt_min, " to ", mixer.dt_max);
}

void read_time_step_floor(ConfigReader& reader, Mamba2Config& mixer) {
  mixer.dt_min = static_cast<float>(reader.number("time_step_min", 0.001));
  require(std::isfinite(mixer.dt_min) && mixer.dt_min >= 0, reader.name_of_key("time_step_min"),
          ": must be finite and not negative, got ", mixer.dt_min);
}

void check_mixer(const ConfigReader& reader, const std::string& key, const Mamba2Config& mixer, int64_t d_inner) {
  require(mixer.d_inner() == d_inner, reader.name_of_key(key), ": heads · head_dim must be ", d_inner, ", got ",
          mixer.heads, " · ", mixer.head_dim);
  require(d_inner <= kMost, reader.name_of_key(key), ": the inner width must be at most ", kMost, ", got ", d_inner);
  require(mixer.heads % mixer.groups == 0, reader.name_of_key(key), ": groups must divide the heads, ", mixer.heads,
          ", got ", mixer.groups);
  require(mixer.groups * mixer.d_state <= kMost, reader.name_of_key(key), ": groups · d_state must be at most ", kMost,
          ", got ", mixer.groups, " · ", mixer.d_state);
}

Mamba2Config read_bamba_mixer(ConfigReader& reader, int64_t d_model, int64_t d_inner, float eps) {
  Mamba2Config mixer{.d_model = d_model,
                     .d_state = reader.integer("mamba_d_state", 256, 1, kMost),
                     .heads = reader.integer("mamba_n_heads", 128, 1, kMost),
                     .groups = reader.integer("mamba_n_groups", 1, 1, kMost),
                     .d_conv = reader.integer("mamba_d_conv", 4, 1, kMostConvTaps),
                     .in_bias = reader.boolean("mamba_proj_bias", false),
                     .conv_bias = reader.boolean("mamba_conv_bias", true),
                     .norm_eps = eps};
  mixer.out_bias = mixer.in_bias;
  const Json& head_dim = reader.value("mamba_d_head");
  mixer.head_dim = head_dim.is_null() || head_dim == "auto"
                       ? d_inner / mixer.heads
                       : json_integer(head_dim, reader.name_of_key("mamba_d_head"), 1, kMost);
  read_time_step_limit(reader, "time_step_limit", mixer);
  check_mixer(reader, "mamba_n_heads", mixer, d_inner);
  reader.harmless({"mamba_chunk_size"});
  return mixer;
}

Mamba1Config read_mamba1_mixer(ConfigReader& reader, const Mamba1Keys& keys, int64_t d_model) {
  Mamba1Config mixer{.d_model = d_model,
                     .d_inner = d_model * reader.integer(keys.expand, 2, 1, 64),
                     .d_state = reader.integer(keys.d_state, 16, 1, 1 << 16),
                     .d_conv = reader.integer(keys.d_conv, 4, 1, kMostConvTaps),
                     .proj_bias = reader.boolean(keys.proj_bias, false),
                     .conv_bias = reader.boolean(keys.conv_bias, true)};
  require(mixer.d_inner <= kMost, reader.name_of_key(keys.expand), ": the inner width must be at most ", kMost,
          ", got ", mixer.d_inner);
  const Json& rank = reader.value(keys.dt_rank);
  mixer.dt_rank = rank.is_null() || rank == "auto" ? (d_model + 15) / 16
                                                   : json_integer(rank, reader.name_of_key(keys.dt_rank), 1, kMost);
  return mixer;
}

AttentionConfig read_attention(ConfigReader& reader, int64_t d_model, int64_t heads, int64_t kv_heads, int64_t head_dim,
                               int64_t d_in) {
  AttentionConfig attention{.d_in = d_in == 0 ? d_model : d_in, .d_model = d_model};
  attention.heads = reader.integer("num_attention_heads", heads, 1, 1 << 16);
  attention.kv_heads = reader.integer("num_key_value_heads", kv_heads == 0 ? attention.heads : kv_heads, 1, 1 << 16);
  require(attention.heads % attention.kv_heads == 0, reader.name_of_key("num_key_value_heads"),
          ": must divide num_attention_heads, ", attention.heads, ", got ", attention.kv_heads);
  attention.head_dim =
      reader.integer("head_dim", head_dim == 0 ? attention.d_in / attention.heads : head_dim, 1, 1 << 16);
  attention.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(attention.head_dim)));
  reader.harmless({"attention_dropout"});
  return attention;
}

void read_rope(ConfigReader& reader, AttentionConfig& attention, double otherwise_theta, double share) {
  const Json& parameters = reader.value("rope_parameters");
  const Json& scaling = reader.value("rope_scaling");
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const Json& value = reader.value(key);
    require(value.is_null() || value.is_object(), reader.name_of_key(key), ": must be an object or null, got ",
            describe(value));
  }
  // transformers 5 lets the older key win where a folder has both.
  const bool scaled = scaling.is_object() && !scaling.empty();
  Json rope = scaled ? scaling : parameters.is_object() ? parameters : Json::object();
  const double theta = reader.number("rope_theta", otherwise_theta);
  if (!rope.contains("rope_theta")) rope["rope_theta"] = theta;
  if (!rope.contains("partial_rotary_factor"))
    rope["partial_rotary_factor"] = reader.number("partial_rotary_factor", share);
  reader.value("partial_rotary_factor");
  const double part = json_number(rope["partial_rotary_factor"], reader.name_of_key("partial_rotary_factor"));
  require(part > 0 && part <= 1, reader.name_of_key("partial_rotary_factor"), ": must be above 0 and at most 1, got ",
          part);
  const auto rotary_dim = static_cast<int64_t>(static_cast<double>(attention.head_dim) * part);
  set_rope(attention, rope, rotary_dim, reader.integer("max_position_embeddings", 2048, 1, int64_t{1} << 40),
           reader.name_of_key(scaled ? "rope_scaling" : "rope_parameters"));
}

std::vector<std::string> read_layer_types(ConfigReader& reader, std::initializer_list<std::string> keys, int64_t layers,
                                          const std::vector<std::string>& known,
                                          const std::vector<std::string>& otherwise) {
  std::vector<std::string> types;
  std::string used;
  for (const std::string& key : keys) {
    const Json& list = reader.value(key);
    if (list.is_null() || !types.empty()) continue;
    used = reader.name_of_key(key);
    require(list.is_array() && !list.empty() && list.size() <= static_cast<size_t>(ConfigReader::kMostLayers), used,
            ": must be a list of layers, got ", describe(list));
    for (const Json& one : list) {
      require(one.is_string(), used, ": must be a list of names, got ", describe(one));
      std::string type = one.get<std::string>();
      if (type == "mamba") type = "linear_attention";
      if (type == "attention") type = "full_attention";
      require(std::find(known.begin(), known.end(), type) != known.end(), used,
              ": must name layers that this family has, got ", quote(type));
      types.push_back(std::move(type));
    }
  }
  if (types.empty()) return otherwise;
  require(layers == 0 || types.size() == static_cast<size_t>(layers), used, ": must have num_hidden_layers entries, ",
          layers, ", got ", types.size());
  return types;
}

}  // namespace elapid
