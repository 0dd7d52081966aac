#include "elapid/model/families/config_reader.h"

#include "elapid/core/error.h"
#include "elapid/core/token.h"
#include "elapid/model/quantization.h"

#include <array>
#include <cmath>

namespace elapid {
namespace {

// Written by save_pretrained into every config.json, and of no influence on the forward pass.
constexpr std::array kHarmless = {"_from_model_config",
                                  "_name_or_path",
                                  "architectures",
                                  "auto_map",
                                  "bad_words_ids",
                                  "begin_suppress_tokens",
                                  "bos_token_id",
                                  "chunk_size_feed_forward",
                                  "decoder_start_token_id",
                                  "diversity_penalty",
                                  "do_sample",
                                  "early_stopping",
                                  "exponential_decay_length_penalty",
                                  "finetuning_task",
                                  "forced_bos_token_id",
                                  "forced_eos_token_id",
                                  "id2label",
                                  "initializer_range",
                                  "is_decoder",
                                  "is_encoder_decoder",
                                  "label2id",
                                  "length_penalty",
                                  "max_length",
                                  "max_position_embeddings",
                                  "min_length",
                                  "model_type",
                                  "num_beam_groups",
                                  "num_beams",
                                  "num_return_sequences",
                                  "output_attentions",
                                  "output_hidden_states",
                                  "output_scores",
                                  "pad_token_id",
                                  "prefix",
                                  "problem_type",
                                  "remove_invalid_values",
                                  "repetition_penalty",
                                  "return_dict",
                                  "return_dict_in_generate",
                                  "sep_token_id",
                                  "suppress_tokens",
                                  "task_specific_params",
                                  "temperature",
                                  "tokenizer_class",
                                  "top_k",
                                  "top_p",
                                  "torchscript",
                                  "transformers_version",
                                  "typical_p",
                                  "use_cache",
                                  "use_mambapy"};

// Read by some family of the Mamba world (or by transformers for any model) as part of the mathematics.
constexpr std::array kMathematics = {"D_has_hdim",
                                     "add_cross_attention",
                                     "attention_bias",
                                     "attention_dropout_scale",
                                     "attention_in_multiplier",
                                     "attention_multiplier",
                                     "attention_out_multiplier",
                                     "attn_cfg",
                                     "attn_layer_idx",
                                     "attn_layer_indices",
                                     "attn_layer_offset",
                                     "attn_layer_period",
                                     "cross_attention_hidden_size",
                                     "d_intermediate",
                                     "d_mlp",
                                     "d_ssm",
                                     "embedding_multiplier",
                                     "expert_layer_offset",
                                     "expert_layer_period",
                                     "ffn_config",
                                     "hybrid_override_pattern",
                                     "key_multiplier",
                                     "layer_types",
                                     "layers_block_type",
                                     "lm_head_multiplier",
                                     "logits_scaling",
                                     "mamba_d_ssm",
                                     "mamba_rms_norm",
                                     "mixer_rms_eps",
                                     "mlp_bias",
                                     "mlp_multipliers",
                                     "n_routed_experts",
                                     "num_attention_heads",
                                     "num_experts",
                                     "num_experts_per_tok",
                                     "num_key_value_heads",
                                     "num_local_experts",
                                     "partial_rotary_factor",
                                     "position_embedding_type",
                                     "pruned_heads",
                                     "residual_multiplier",
                                     "rope_parameters",
                                     "rope_scaling",
                                     "rope_theta",
                                     "shared_intermediate_size",
                                     "sliding_window",
                                     "ssm_cfg",
                                     "ssm_in_multiplier",
                                     "ssm_multipliers",
                                     "ssm_out_multiplier",
                                     "tie_encoder_decoder",
                                     "use_adapter_in_attention",
                                     "use_mem_rope"};

bool says_off(const Json& value) {
  return value.is_null() || (value.is_boolean() && !value.get<bool>()) ||
         ((value.is_array() || value.is_object()) && value.empty());
}

constexpr std::string_view kAbsent = "nothing";

}  // namespace

double finite_number(const Json& value, const std::string& what) {
  const double number = json_number(value, what);
  require(std::abs(number) <= std::numeric_limits<float>::max(), what, ": must be finite as a float32, got ", number);
  return number;
}

ConfigReader::ConfigReader(const Json& json, const std::string& what) : json_(json), what_(what) {
  require(json.is_object(), what, ": must be a JSON object, got ", json.type_name());
}

const Json& ConfigReader::value(const std::string& key) {
  static const Json absent;
  read_.insert(key);
  const auto found = json_.find(key);
  return found == json_.end() ? absent : *found;
}

int64_t ConfigReader::integer(const std::string& key, int64_t otherwise, int64_t minimum, int64_t maximum) {
  const Json& v = value(key);
  return v.is_null() ? otherwise : json_integer(v, name_of_key(key), minimum, maximum);
}

double ConfigReader::number(const std::string& key, double otherwise) {
  const Json& v = value(key);
  return v.is_null() ? otherwise : finite_number(v, name_of_key(key));
}

bool ConfigReader::boolean(const std::string& key, bool otherwise) {
  const Json& v = value(key);
  if (v.is_null()) return otherwise;
  require(v.is_boolean(), name_of_key(key), ": must be true or false, got ", describe(v));
  return v.get<bool>();
}

std::string ConfigReader::text(const std::string& key, const std::string& otherwise) {
  const Json& v = value(key);
  if (v.is_null()) return otherwise;
  require(v.is_string(), name_of_key(key), ": must be a string, got ", describe(v));
  return v.get<std::string>();
}

std::vector<int64_t> ConfigReader::integers(const std::string& key, int64_t minimum, int64_t maximum) {
  const Json& v = value(key);
  std::vector<int64_t> all;
  if (v.is_null()) return all;
  for (const Json& one : v.is_array() ? v : Json::array({v})) {
    all.push_back(json_integer(one, name_of_key(key), minimum, maximum));
  }
  return all;
}

void ConfigReader::harmless(std::initializer_list<std::string_view> keys) {
  for (const std::string_view key : keys) read_.emplace(key);
}

void ConfigReader::finish_part() {
  for (const auto& [key, v] : json_.items()) {
    require(read_.contains(key), name_of_key(key), ": must be a key that this engine knows, got ", describe(v));
  }
}

void ConfigReader::finish(ModelConfig& config) {
  // Some write -1 for none.
  config.eos_ids = integers("eos_token_id", -1, std::numeric_limits<TokenId>::max());
  std::erase(config.eos_ids, -1);
  config.tokens = integer(kTokens, config.tokens, 1, config.vocab);
  // transformers 5 writes dtype, earlier releases torch_dtype.
  const std::string legacy = text("torch_dtype", std::string(kAbsent)), dtype = text("dtype", legacy);
  if (dtype == "float32") config.torch_dtype = DType::f32;
  if (dtype == "bfloat16") config.torch_dtype = DType::bf16;
  if (dtype == "float16") config.torch_dtype = DType::f16;
  require(config.torch_dtype || dtype == kAbsent, name_of_key("torch_dtype"),
          ": must be float32, bfloat16 or float16, got ", quote(dtype));

  if (const Json& quantization = value("quantization_config"); !says_off(quantization)) {
    config.quantization = read_quantization(quantization, name_of_key("quantization_config"));
  }

  read_.insert(kHarmless.begin(), kHarmless.end());
  for (const auto& [key, v] : json_.items()) {
    if (read_.contains(key)) continue;
    const bool changes = std::find(kMathematics.begin(), kMathematics.end(), key) != kMathematics.end();
    require(!changes || says_off(v), name_of_key(key), ": must be absent or off for ", config.family,
            ", whose computation knows no such thing, got ", describe(v));
    if (!changes) config.unknown_keys.push_back(key);
  }
}

}  // namespace elapid
