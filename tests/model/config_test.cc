#include "elapid/model/config.h"

#include "tests/model/fixtures.h"

#include <cmath>
#include <gtest/gtest.h>

namespace elapid::testing {
namespace {

ModelConfig parse(const Json& json) { return parse_config(json.dump(), "config.json"); }

Json storyteller() { return read_json(storyteller_folder() / "config.json"); }

const Mamba2Config& mixer(const ModelConfig& c) { return std::get<Mamba2Config>(c.blocks.at(0).bodies.at(0).config); }

TEST(Config, ReadsTheBundledModel) {
  const ModelConfig c = parse(storyteller());
  EXPECT_EQ(c.vocab, 4096);
  EXPECT_EQ(c.d_model, 384);
  EXPECT_EQ(c.blocks.size(), 12u);
  EXPECT_TRUE(c.tied_head);
  EXPECT_EQ(c.torch_dtype, DType::bf16);
  EXPECT_EQ(c.eos_ids, std::vector<int64_t>{0});
  EXPECT_EQ(mixer(c).heads, 12);
  EXPECT_EQ(mixer(c).conv_dim(), 768 + 2 * 128);
  EXPECT_TRUE(c.unknown_keys.empty());
}

TEST(Config, BothSpellingsOfInfinityMeanNoLimit) {
  for (const char* name : {"config.json", "config.bare_infinity.json"}) {
    const fs::path path = case_folder("mamba2_default") / name;
    const ModelConfig c = parse_config(read_text_file(path), path.string());
    EXPECT_EQ(mixer(c).dt_min, 0) << name;
    EXPECT_EQ(mixer(c).dt_max, INFINITY) << name;
  }
  const ModelConfig limited = load_config(case_folder("mamba2_dtlimit"));
  EXPECT_EQ(mixer(limited).dt_min, 0.01f);
  EXPECT_EQ(mixer(limited).dt_max, 0.1f);
}

TEST(Config, DefaultsAreThoseOfTransformers) {
  const ModelConfig c = parse(Json{{"model_type", "mamba2"}});
  EXPECT_EQ(c.vocab, 32768);
  EXPECT_EQ(c.d_model, 4096);
  EXPECT_EQ(c.blocks.size(), 64u);
  EXPECT_EQ(mixer(c).groups, 8);
  EXPECT_FALSE(c.tied_head);
}

TEST(Config, EosMayBeAList) {
  Json json = storyteller();
  json["eos_token_id"] = {0, 7};
  EXPECT_EQ(parse(json).eos_ids, (std::vector<int64_t>{0, 7}));
}

TEST(Config, EosMayBeNone) {
  Json json = storyteller();
  for (const Json& none : {Json(nullptr), Json(-1), Json::array()}) {
    json["eos_token_id"] = none;
    EXPECT_TRUE(parse(json).eos_ids.empty()) << none;
  }
  json["eos_token_id"] = 2147483647;
  EXPECT_EQ(parse(json).eos_ids, std::vector<int64_t>{2147483647});
}

TEST(Config, UnknownKeysAreReportedAndMathematicsRefused) {
  Json json = storyteller();
  json["my_experiment"] = 3;
  EXPECT_EQ(parse(json).unknown_keys, std::vector<std::string>{"my_experiment"});
  json["logits_scaling"] = nullptr;  // off
  EXPECT_NO_THROW(parse(json));
  const Json mathematics = {{"logits_scaling", 8.0}, {"attn_layer_idx", {1, 3}}, {"num_local_experts", 4}};
  for (const auto& [key, value] : mathematics.items()) {
    Json changed = storyteller();
    changed[key] = value;
    const std::string message = error_of([&] { parse(changed); });
    EXPECT_NE(message.find("config.json: " + key + ": must be absent or off"), std::string::npos) << message;
  }
}

TEST(Config, QuantizationsAreKnownOrRefused) {
  const auto read = [](const Json& value) {
    Json json = storyteller();
    json["quantization_config"] = value;
    return parse(json).quantization;
  };
  EXPECT_FALSE(read(nullptr) || read(Json::object()));
  const Json ours = {{"quant_method", "elapid"}, {"version", 1}, {"bits", 4}, {"group_size", 64}, {"code", "nf4"}},
             theirs = {{"quant_method", "bitsandbytes"},
                       {"load_in_4bit", true},
                       {"load_in_8bit", false},
                       {"bnb_4bit_quant_type", "nf4"},
                       {"bnb_4bit_use_double_quant", true},
                       {"bnb_4bit_compute_dtype", "bfloat16"},
                       {"llm_int8_skip_modules", nullptr}};
  EXPECT_EQ(read(ours)->code, "nf4");
  EXPECT_EQ(read(theirs)->method, Quantization::Method::bitsandbytes);
  const auto changed = [](Json json, const char* key, const Json& value) {
    json[key] = value;
    return json;
  };
  const std::pair<Json, const char*> bad[] = {
      {3, "must be an object, got 3"},
      {{{"bits", 4}}, "must be elapid's, or bitsandbytes' with load_in_4bit, got neither"},
      {{{"quant_method", "gptq"}, {"bits", 4}}, "got quant_method \"gptq\""},
      {changed(ours, "bits", 8), "code must be \"int8\", got \"nf4\""},
      {changed(ours, "bits", 3), "bits must be 4, got 3"},
      {changed(ours, "version", 2), "version must be 1, got 2"},
      {changed(ours, "group_size", 128), "group_size must be 64, got 128"},
      {changed(ours, "code", nullptr), "code must be \"nf4\", got null"},
      {changed(theirs, "bnb_4bit_quant_type", "int4"), "bnb_4bit_quant_type must be nf4 or fp4, got \"int4\""},
      {changed(changed(theirs, "load_in_4bit", false), "load_in_8bit", true), "got load_in_8bit"}};
  for (const auto& [value, says] : bad) {
    const std::string message = error_of([&, &value = value] { read(value); });
    EXPECT_NE(message.find(concat("quantization_config: ")), std::string::npos) << message;
    EXPECT_NE(message.find(says), std::string::npos) << message;
  }
}

TEST(Config, BadValuesAreErrorsThatNameTheKey) {
  const Json bad[] = {{{"vocab_size", 0}},
                      {{"vocab_size", -1}},
                      {{"vocab_size", 1e18}},
                      {{"vocab_size", "many"}},
                      {{"hidden_size", 383}},
                      {{"hidden_size", 1.5}},
                      {{"num_heads", 0}},
                      {{"n_groups", 5}},
                      {{"n_groups", 0}},
                      {{"state_size", -128}},
                      {{"conv_kernel", 0}},
                      {{"conv_kernel", 1000}},
                      {{"expand", 3}},
                      {{"num_hidden_layers", 0}},
                      {{"num_hidden_layers", 1e9}},
                      {{"hidden_act", "gelu"}},
                      {{"rms_norm", false}},
                      {{"use_bias", "no"}},
                      {{"layer_norm_epsilon", -1}},
                      {{"layer_norm_epsilon", "x"}},
                      {{"time_step_limit", 3}},
                      {{"time_step_limit", {0.0}}},
                      {{"time_step_limit", {1.0, 0.5}}},
                      {{"torch_dtype", "int3"}},
                      {{"eos_token_id", "end"}},
                      {{"eos_token_id", -2}},
                      {{"eos_token_id", 4294967303}},
                      {{"eos_token_id", {0, 2147483648}}},
                      {{"tie_word_embeddings", 1}},
                      {{"layer_norm_epsilon", {{"__float__", "NaN"}}}},
                      {{"time_step_limit", {{{"__float__", "NaN"}}, 1.0}}},
                      {{"time_step_limit", {{{"__float__", "-Infinity"}}, 1.0}}}};
  for (const Json& change : bad) {
    Json json = storyteller();
    json.update(change);
    const std::string message = error_of([&] { parse(json); });
    const std::string key = change.begin().key();
    // Sizes that contradict each other are reported under num_heads.
    const bool named = message.find("config.json: " + key) == 0 || message.find("config.json: num_heads") == 0;
    EXPECT_TRUE(named) << change << " gave: " << message;
    EXPECT_EQ(message.find('\n'), std::string::npos);
  }
  EXPECT_EQ(error_of([] { parse_config("[1]", "c"); }), "c: must be a JSON object, got array");
  EXPECT_EQ(error_of([] { parse_config("{}", "c"); }), "c: must name its model_type, got nothing");
  EXPECT_NE(error_of([] { parse_config(R"({"model_type": "gpt2"})", "c"); }).find("got gpt2"), std::string::npos);
}

// Layers times experts have names before any tensor is looked at: a short text must not ask for millions.
TEST(Config, ExpertsOfAllLayersTogetherAreBounded) {
  const auto error = [](const Json& json) { return error_of([&] { parse(json); }); };
  EXPECT_EQ(error({{"model_type", "granitemoe"}, {"num_hidden_layers", 16384}, {"num_local_experts", 4096}}),
            "config.json: all layers together must have at most 131072 experts, got 67108864 in 16384 layers");
  EXPECT_EQ(error({{"model_type", "jamba"}, {"num_hidden_layers", 1000}, {"num_experts", 4000}}),
            "config.json: all layers together must have at most 131072 experts, got 2000000 in 500 layers");
  EXPECT_EQ(error({{"model_type", "nemotron_h"},
                   {"hybrid_override_pattern", std::string(100, 'E')},
                   {"n_routed_experts", 4096}}),
            "config.json: all layers together must have at most 131072 experts, got 409600 in 100 layers");
  EXPECT_EQ(error({{"model_type", "granitemoe"}, {"num_hidden_layers", 32}, {"num_local_experts", 4096}}), "no error");
}

TEST(Config, RopeIsNeverPassedOverInSilence) {
  const auto error = [](const Json& change) {
    Json json = {{"model_type", "granitemoe"}};
    json.update(change);
    return error_of([&] { parse(json); });
  };
  const Json yarn = {{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 512}};
  EXPECT_EQ(error({{"rope_scaling", nullptr}}), "no error");
  EXPECT_EQ(error({{"rope_scaling", yarn}}), "no error");
  EXPECT_EQ(error({{"rope_scaling", "yarn"}}), "config.json: rope_scaling: must be an object or null, got \"yarn\"");
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const std::string message = error({{key, {1, 2}}});
    EXPECT_EQ(message.find(concat("config.json: ", key, ": must be an object or null, got ")), 0u) << message;
  }
  Json changed = yarn;
  changed["beta_fastest"] = 3;
  EXPECT_EQ(error({{"rope_parameters", changed}}),
            "config.json: rope_parameters: beta_fastest: must be a key that this engine knows, got 3");
  changed = yarn;
  changed["truncate"] = "no";
  EXPECT_EQ(error({{"rope_parameters", changed}}),
            "config.json: rope_parameters: truncate must be true or false, got \"no\"");
  changed = yarn;
  changed["attention_factor"] = 1e300;
  EXPECT_EQ(error({{"rope_parameters", changed}}),
            "config.json: rope_parameters: attention_factor must be finite, got 1e+300");
  // Of both, the older key counts, as in transformers.
  changed = {{"rope_type", "default"}, {"wobble", 3}};
  EXPECT_EQ(error({{"rope_parameters", yarn}, {"rope_scaling", changed}}),
            "config.json: rope_scaling: wobble: must be a key that this engine knows, got 3");
  EXPECT_EQ(error({{"rope_parameters", changed}, {"rope_scaling", yarn}}), "no error");
  EXPECT_EQ(error({{"rope_parameters", yarn}, {"rope_theta", 1}}),
            "config.json: rope_parameters: rope_theta must be above 1 for yarn, got 1");
  EXPECT_EQ(error({{"rope_theta", 1}}), "no error");
  EXPECT_NE(error({{"rope_theta", 1e-300}}).find("frequencies must be finite"), std::string::npos);
}

TEST(Config, MultipliersAreFinite) {
  const Json infinity = {{"__float__", "Infinity"}};
  for (const char* key : {"embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"}) {
    for (const Json& value : {infinity, Json(1e300)}) {
      const std::string message = error_of([&] { parse({{"model_type", "granitemoe"}, {key, value}}); });
      EXPECT_EQ(message.find(concat("config.json: ", key, ": must be finite as a float32, got ")), 0u) << message;
    }
  }
  for (const double tiny : {0.0, 1e-300}) {
    const std::string message = error_of([&] { parse({{"model_type", "granitemoe"}, {"logits_scaling", tiny}}); });
    EXPECT_EQ(message.find("config.json: logits_scaling: must not be 0"), 0u) << message;
  }
  const std::string message = error_of([&] {
    parse({{"model_type", "falcon_h1"}, {"mlp_multipliers", {1.0, infinity}}});
  });
  EXPECT_EQ(message, "config.json: mlp_multipliers: must be finite as a float32, got inf");
}

TEST(Config, ANaNIsRefusedHoweverItIsWritten) {
  const std::string text = R"({"model_type": "mamba2", "layer_norm_epsilon": NaN})";
  EXPECT_NE(error_of([&] { parse_config(text, "c"); }).find("c: layer_norm_epsilon"), std::string::npos);
}

}  // namespace
}  // namespace elapid::testing
