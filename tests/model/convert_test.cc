#include "elapid/model/convert.h"

#include "tests/model/fixtures.h"

#include <gtest/gtest.h>

namespace elapid::testing {
namespace {

class ConvertTest : public ::testing::Test {
 protected:
  std::vector<float> logits(const fs::path& folder) {
    const auto model = load_model(folder, threads_);
    return run(*model, ctx_, {{{5, 17, 3, 90, 41, 8, 8}}, {{4, 6}}});
  }

  TemporaryFolder folder_;
  ThreadPool threads_{2};
  Arena arena_;
  Context ctx_{{}, threads_, arena_};
};

class ConvertCase : public ConvertTest, public ::testing::WithParamInterface<std::string> {};

// What transformers has a class for.
bool is_expressible(const std::string& name) {
  for (const char* none : {"layernorm", "dssm_mlp", "mamba2attn", "transformerpp"}) {
    if (name.find(none) != std::string::npos) return false;
  }
  return true;
}

TEST_P(ConvertCase, WritesAFolderThatComputesTheSameBits) {
  const fs::path from = case_folder(GetParam()), to = folder_.path() / "converted";
  if (!is_expressible(GetParam())) {
    EXPECT_EQ(error_of([&] {
                convert_checkpoint(from, to);
              }).find("convert: a class of transformers must compute this model, got "),
              0u);
    EXPECT_FALSE(fs::exists(to)) << "nothing is left behind";
    return;
  }
  const Conversion done = convert_checkpoint(from, to);
  const Json config = read_json(to / "config.json");
  EXPECT_EQ(config["model_type"], done.family);
  EXPECT_TRUE(fs::exists(to / "model.safetensors"));
  EXPECT_FALSE(fs::exists(to / "pytorch_model.bin"));
  EXPECT_EQ(logits(to), logits(from));
  // Written again from what was written: the same names and shapes, hence the same table both ways.
  const fs::path again = folder_.path() / "again";
  EXPECT_EQ(convert_checkpoint(to, again, {.max_shard_bytes = 20'000}).tensors, done.tensors);
  EXPECT_TRUE(fs::exists(again / "model.safetensors.index.json")) << "in shards of 20 kB";
  EXPECT_EQ(logits(again), logits(from));
  // Rows of a padded vocabulary stay rows without an id.
  const auto ids = [](const fs::path& folder) {
    const ModelConfig read = load_config(folder);
    return read.tokens > 0 ? read.tokens : read.vocab;
  };
  EXPECT_EQ(ids(to), ids(from));
  EXPECT_EQ(ids(again), ids(from));
}

INSTANTIATE_TEST_SUITE_P(Cases, ConvertCase, ::testing::ValuesIn(conformance_cases()),
                         [](const auto& one) { return test_name(one.param); });

TEST(Convert, TheGatedNormDecidesTheClass) {
  TemporaryFolder folder;
  const fs::path from = case_folder("state_spaces/ss_mamba2_groups");
  EXPECT_EQ(convert_checkpoint(from, folder.path() / "group").family, "nemotron_h");
  EXPECT_EQ(convert_checkpoint(from, folder.path() / "whole", {.load = {.gated_norm = GatedNorm::whole}}).family,
            "mamba2");
  // Existing files are not written over.
  EXPECT_THROW(convert_checkpoint(from, folder.path() / "group"), Error);
}

// Mistral's layout of a Mamba-2 model: the original's names behind "model.", its configuration in other words.
TEST(Convert, ReadsMistralsLayout) {
  TemporaryFolder folder;
  const fs::path original = folder.path() / "original", mistral = folder.path() / "mistral";
  fs::create_directories(original);
  fs::create_directories(mistral);
  const Json config = {{"d_model", 64},
                       {"n_layer", 2},
                       {"vocab_size", 101},
                       {"tie_embeddings", false},
                       {"ssm_cfg", {{"layer", "Mamba2"}, {"ngroups", 2}}}};
  write_text(original / "config.json", config.dump());
  RandomCheckpoint checkpoint(load_config(original));
  write_safetensors(original / "model.safetensors", checkpoint.tensors);
  for (NamedTensor& t : checkpoint.tensors) t.name = "model." + t.name;
  write_safetensors(mistral / "consolidated.safetensors", checkpoint.tensors);
  const Json params = {{"dim", 64},
                       {"n_layers", 2},
                       {"vocab_size", 101},
                       {"n_groups", 2},
                       {"rms_norm", true},
                       {"tie_embeddings", false},
                       {"model_type", "mamba"},
                       {"pad_vocab_size_multiple", 8},
                       {"residual_in_fp32", true},
                       {"fused_add_norm", true}};
  write_text(mistral / "params.json", params.dump());

  ThreadPool threads(2);
  Arena arena;
  Context ctx{{}, threads, arena};
  const auto logits = [&](const fs::path& path, const LoadOptions& options = {}) {
    return run(*load_model(path, threads, options), ctx, {{{5, 17, 3, 90, 41, 8, 8}}});
  };
  const std::vector<float> want = logits(original);
  EXPECT_EQ(logits(mistral), want);
  EXPECT_EQ(want.size(), 7u * 104) << "rows of the padded vocabulary";
  EXPECT_NE(logits(mistral, {.gated_norm = GatedNorm::whole}), want);
  const ModelConfig read = load_config(mistral);
  EXPECT_EQ(read.family, "mistral_mamba");
  EXPECT_EQ(read.tokens, 101);
  ASSERT_EQ(read.notes.size(), 1u);
  EXPECT_EQ(read.notes[0], "the gated norm works per group, as this checkpoint was trained");

  // Beside transformers' files, params.json only tells how the model was trained.
  const fs::path both = folder.path() / "both";
  convert_checkpoint(mistral, both, {.load = {.gated_norm = GatedNorm::whole}});
  EXPECT_EQ(load_config(both).notes.at(0), "the gated norm covers the whole width, as in transformers' class");
  write_text(both / "params.json", params.dump());
  EXPECT_EQ(load_config(both).notes.at(0), "the gated norm works per group, as this checkpoint was trained");
  EXPECT_EQ(logits(both), want);
  // Converted, it has params.json no more: a class that norms per group says the same.
  const fs::path grouped = folder.path() / "grouped", whole = folder.path() / "whole";
  EXPECT_EQ(convert_checkpoint(both, grouped).family, "nemotron_h");
  EXPECT_EQ(logits(grouped), want);
  // Asked otherwise, the folder is what its class computes.
  EXPECT_EQ(convert_checkpoint(both, whole, {.load = {.gated_norm = GatedNorm::whole}}).family, "mamba2");
  EXPECT_EQ(logits(whole), logits(mistral, {.gated_norm = GatedNorm::whole}));
}

TEST_F(ConvertTest, TheGatedNormThatIsAskedForIsWritten) {
  const LoadOptions group{.gated_norm = GatedNorm::group}, whole{.gated_norm = GatedNorm::whole};
  const auto logits_as = [&](const fs::path& folder, const LoadOptions& options) {
    const auto model = load_model(folder, threads_, options);
    return run(*model, ctx_, {{{5, 17, 3, 90, 41, 8, 8}}, {{4, 6}}});
  };
  const fs::path from = case_folder("mamba2_groups"), grouped = folder_.path() / "grouped";
  EXPECT_EQ(convert_checkpoint(from, grouped, {.load = group}).family, "nemotron_h");
  EXPECT_EQ(logits(grouped), logits_as(from, group));
  EXPECT_NE(logits(grouped), logits(from));
  // And back: mixers alone have both classes.
  const fs::path back = folder_.path() / "back";
  EXPECT_EQ(convert_checkpoint(grouped, back, {.load = whole}).family, "mamba2");
  EXPECT_EQ(logits(back), logits(from));
  // No class norms attention's neighbours otherwise.
  EXPECT_EQ(error_of([&] {
              convert_checkpoint(case_folder("nemotron_h_default"), folder_.path() / "none", {.load = whole});
            }),
            "convert: a class of transformers must compute this model, got layers of attention or an MLP beside the "
            "mixers");
  EXPECT_FALSE(fs::exists(folder_.path() / "none"));
}

}  // namespace
}  // namespace elapid::testing
