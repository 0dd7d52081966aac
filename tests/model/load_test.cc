#include "elapid/model/load.h"

#include "elapid/io/checkpoint.h"
#include "elapid/model/families/family.h"
#include "tests/io/torch_support.h"
#include "tests/model/fixtures.h"

#include <cmath>
#include <cstring>
#include <gtest/gtest.h>

namespace elapid::testing {
namespace {

// The tensors of a small checkpoint, to be changed and written elsewhere.
class Checkpoint {
 public:
  explicit Checkpoint(const std::string& name)
      : config(read_json(case_folder(name) / "config.json")),
        source_(elapid::Checkpoint::open_folder(case_folder(name))) {
    for (const auto& [tensor_name, entry] : source_.entries()) tensors.push_back({tensor_name, entry.tensor});
  }

  Tensor& at(const std::string& name) {
    for (NamedTensor& t : tensors) {
      if (t.name == name) return t.tensor;
    }
    fail("no tensor " + name);
  }
  void erase(const std::string& name) {
    std::erase_if(tensors, [&](const NamedTensor& t) { return t.name == name; });
  }
  // A zeroed tensor of this shape that lives as long as the checkpoint.
  Tensor make(DType dtype, Shape shape) {
    memory_.emplace_back(shape.size() * size_of(dtype));
    return {memory_.back().data(), dtype, shape};
  }
  void write(const fs::path& folder) const {
    write_text(folder / "config.json", config.dump());
    write_safetensors(folder / "model.safetensors", tensors);
  }

  Json config;
  std::vector<NamedTensor> tensors;

 private:
  elapid::Checkpoint source_;
  std::vector<Buffer> memory_;
};

const std::string kEmbedding = "backbone.embeddings.weight", kInProj = "backbone.layers.1.mixer.in_proj.weight";

class LoadTest : public ::testing::Test {
 protected:
  std::string load_error(const Checkpoint& checkpoint) {
    checkpoint.write(folder_.path());
    return error_of([&] { load_model(folder_.path(), threads_); });
  }
  std::vector<float> logits(const fs::path& folder) {
    const auto model = load_model(folder, threads_);
    return run(*model, ctx_, {{{5, 17, 3, 90, 41, 8, 8}}});
  }

  TemporaryFolder folder_;
  ThreadPool threads_{2};
  Arena arena_;
  Context ctx_{{}, threads_, arena_};
};

TEST_F(LoadTest, MissingUnknownAndMisshapenTensorsAreNamed) {
  Checkpoint missing("mamba2_default");
  missing.erase(kInProj);
  EXPECT_NE(load_error(missing).find("must have the tensor " + kInProj), std::string::npos);

  Checkpoint unknown("mamba2_default");
  unknown.tensors.push_back({"backbone.layers.0.mixer.surprise", unknown.make(DType::f32, {3})});
  EXPECT_NE(load_error(unknown).find("got backbone.layers.0.mixer.surprise"), std::string::npos);

  Checkpoint misshapen("mamba2_default");
  misshapen.at(kInProj) = misshapen.make(DType::f32, {164, 31});
  EXPECT_EQ(load_error(misshapen), "load model: " + kInProj + " must be [164, 32] as config.json says, got [164, 31]");

  Checkpoint integers("mamba2_default");
  integers.at(kInProj) = integers.make(DType::i32, {164, 32});
  EXPECT_EQ(load_error(integers), "load model: " + kInProj + " must be f32, bf16 or f16, got i32");
}

TEST_F(LoadTest, BuffersThatEarlierReleasesSavedAreIgnored) {
  Checkpoint checkpoint("granitemoe_default");
  checkpoint.write(folder_.path());
  const std::vector<float> plain = logits(folder_.path());
  checkpoint.tensors.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", checkpoint.make(DType::f32, {4})});
  checkpoint.tensors.push_back({"model.norm.num_batches_tracked", checkpoint.make(DType::i64, {})});
  checkpoint.write(folder_.path());
  EXPECT_EQ(logits(folder_.path()), plain);
  checkpoint.tensors.push_back({"model.layers.0.self_attn.inv_freqs", checkpoint.make(DType::f32, {4})});
  EXPECT_NE(load_error(checkpoint)
                .find("every tensor must be one that granitemoe has, got model.layers.0.self_attn."
                      "inv_freqs"),
            std::string::npos);
}

TEST_F(LoadTest, FolderErrorsNameWhatIsThere) {
  EXPECT_NE(error_of([&] { load_model(folder_.path() / "none", threads_); }).find("must be a folder"),
            std::string::npos);
  EXPECT_NE(error_of([&] { load_model(folder_.path(), threads_); }).find("config.json"), std::string::npos);
  write_text(folder_.path() / "config.json", Checkpoint("mamba2_default").config.dump());
  EXPECT_NE(error_of([&] { load_model(folder_.path(), threads_); }).find("model.safetensors"), std::string::npos);
  write_text(folder_.path() / "model.safetensors", "");
  EXPECT_NE(error_of([&] { load_model(folder_.path(), threads_); }).find("model.safetensors"), std::string::npos);
}

TEST_F(LoadTest, ATiedHeadMayBeInTheFileAndCountsWhenItDiffers) {
  Checkpoint tied("mamba2_default");
  tied.write(folder_.path());
  const std::vector<float> plain = logits(folder_.path());

  tied.tensors.push_back({"lm_head.weight", tied.at(kEmbedding)});
  tied.write(folder_.path());
  EXPECT_EQ(logits(folder_.path()), plain);

  const Tensor doubled = tied.make(DType::f32, {96, 32});
  for (int64_t i = 0; i < doubled.size(); ++i) doubled.ptr<float>()[i] = 2 * tied.at(kEmbedding).ptr<float>()[i];
  tied.at("lm_head.weight") = doubled;
  tied.write(folder_.path());
  const std::vector<float> own = logits(folder_.path());
  ASSERT_EQ(own.size(), plain.size());
  for (size_t i = 0; i < own.size(); ++i) ASSERT_EQ(own[i], 2 * plain[i]);  // doubling is exact
  const auto model = load_model(folder_.path(), threads_);
  ASSERT_EQ(model->config().notes.size(), 1u);
  EXPECT_NE(model->config().notes[0].find("lm_head.weight differs"), std::string::npos);

  Checkpoint untied("mamba2_groups");
  untied.erase("lm_head.weight");
  EXPECT_NE(load_error(untied).find("must have the tensor lm_head.weight"), std::string::npos);
}

// Weights of a narrower type are used as stored: the model equals the float32 model of the same values, bit for bit.
TEST_F(LoadTest, StoredTypesKeepTheirValues) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    Checkpoint narrow("mamba2_groups"), wide("mamba2_groups");
    for (size_t i = 0; i < narrow.tensors.size(); ++i) {
      const Tensor from = narrow.tensors[i].tensor;
      const Tensor small = narrow.make(dtype, from.shape), large = wide.make(DType::f32, from.shape);
      for (int64_t j = 0; j < from.size(); ++j) {
        float value;
        std::memcpy(&value, static_cast<const char*>(from.data) + j * 4, 4);
        // Eight significant bits: exact in both types.
        const BFloat16 rounded = to_bf16(std::abs(value) < 1e-4f ? 0.0f : value);
        const float exact = to_float(rounded);
        large.ptr<float>()[j] = exact;
        if (dtype == DType::bf16) {
          small.ptr<BFloat16>()[j] = rounded;
        } else {
          const auto half = static_cast<_Float16>(exact);
          std::memcpy(small.ptr<Float16>() + j, &half, 2);
          ASSERT_EQ(static_cast<float>(half), exact);
        }
      }
      narrow.tensors[i].tensor = small;
      wide.tensors[i].tensor = large;
    }
    TemporaryFolder narrow_folder, wide_folder;
    narrow.write(narrow_folder.path());
    wide.write(wide_folder.path());
    EXPECT_EQ(logits(narrow_folder.path()), logits(wide_folder.path())) << name_of(dtype);
  }
}

TEST_F(LoadTest, ShardsEqualOneFile) {
  Checkpoint checkpoint("mamba2_chunk_a");
  checkpoint.write(folder_.path());
  TemporaryFolder sharded;
  write_text(sharded.path() / "config.json", checkpoint.config.dump());
  std::vector<NamedTensor> halves[2];
  Json map = Json::object();
  for (size_t i = 0; i < checkpoint.tensors.size(); ++i) {
    halves[i % 2].push_back(checkpoint.tensors[i]);
    map[checkpoint.tensors[i].name] = concat("model-0000", i % 2 + 1, "-of-00002.safetensors");
  }
  for (size_t i = 0; i < 2; ++i) {
    write_safetensors(sharded.path() / concat("model-0000", i + 1, "-of-00002.safetensors"), halves[i]);
  }
  write_text(sharded.path() / "model.safetensors.index.json", Json{{"weight_map", map}}.dump());
  EXPECT_EQ(logits(sharded.path()), logits(folder_.path()));
}

TEST_F(LoadTest, TorchFilesEqualSafetensors) {
  Checkpoint checkpoint("mamba2_default");
  checkpoint.write(folder_.path());
  // Matrices are stored the other way round: what is loaded are copies of strided views, the embedding table too.
  std::string entries;
  std::vector<std::string> storages;
  for (const NamedTensor& named : checkpoint.tensors) {
    const Tensor& t = named.tensor;
    std::string data(static_cast<const char*>(t.data), static_cast<size_t>(t.bytes()));
    std::string shape = "(", strides = "(";
    for (int i = 0; i < t.shape.rank; ++i) {
      shape += pickled(t.shape[i]);
      strides += pickled(t.shape.rank == 2 ? (i == 0 ? 1 : t.shape[0]) : t.strides[i]);
    }
    for (int64_t i = 0; t.shape.rank == 2 && i < t.size(); ++i) {
      const int64_t row = i / t.shape[1], column = i % t.shape[1];
      std::memcpy(data.data() + 4 * (column * t.shape[0] + row), t.ptr<float>() + i, 4);
    }
    entries += pickled(named.name) + pickled_global("torch._utils", "_rebuild_tensor_v2") + "(" +
               pickled_storage(std::to_string(storages.size()), "Float", t.size()) + pickled(int64_t{0}) + shape + "t" +
               strides + "t\x89}tR";
    storages.push_back(std::move(data));
  }
  TemporaryFolder torch;
  write_text(torch.path() / "config.json", checkpoint.config.dump());
  write_text(torch.path() / "pytorch_model.bin", torch_zip(pickle(pickled_dict(entries)), storages).str());
  EXPECT_EQ(logits(torch.path()), logits(folder_.path()));
  EXPECT_EQ(load_model(torch.path(), threads_)->state_spec()->fingerprint(),
            load_model(folder_.path(), threads_)->state_spec()->fingerprint());
}

TEST_F(LoadTest, FingerprintFollowsWeightsAndMathematicsOnly) {
  const auto fingerprint = [&](const Checkpoint& checkpoint) {
    checkpoint.write(folder_.path());
    return load_model(folder_.path(), threads_)->state_spec()->fingerprint();
  };
  const std::string original = fingerprint(Checkpoint("mamba2_default"));
  EXPECT_EQ(original.size(), 32u);
  Checkpoint renamed("mamba2_default");
  renamed.config["_name_or_path"] = "elsewhere";
  EXPECT_EQ(fingerprint(renamed), original);
  Checkpoint limited("mamba2_default");
  limited.config["time_step_limit"] = {0.0, 0.5};
  EXPECT_NE(fingerprint(limited), original);
  // One bit of one weight.
  Checkpoint changed("mamba2_default");
  const Tensor copy = changed.make(DType::f32, {96, 32});
  std::memcpy(copy.data, changed.at(kEmbedding).data, static_cast<size_t>(copy.bytes()));
  static_cast<uint8_t*>(copy.data)[4 * 1000] ^= 1;
  changed.at(kEmbedding) = copy;
  EXPECT_NE(fingerprint(changed), original);
}

TEST_F(LoadTest, NamesAreInvertible) {
  const ModelConfig config = load_config(case_folder("mamba2_bias"));
  std::set<std::string> ours, theirs;
  const auto rules = find_family("mamba2", "test").names(config).take();
  for (const NameRule& rule : rules) {
    ours.insert(rule.ours);
    theirs.insert(rule.theirs);
  }
  EXPECT_EQ(ours.size(), rules.size());
  EXPECT_EQ(theirs.size(), rules.size());
  Model model(config);
  model.visit([&](const ParameterInfo& info) { EXPECT_TRUE(ours.contains(info.name)) << info.name; });
}

TEST_F(LoadTest, RandomModelsAreFiniteReproducibleAndNotZero) {
  ModelConfig config = load_config(case_folder("mamba2_groups"));
  for (const DType dtype : {DType::f32, DType::bf16}) {
    config.torch_dtype = dtype;
    const Sequence prompt{{1, 2, 3, 4, 5, 6, 7, 8, 9}};
    const std::vector<float> a = run(*random_model(config, threads_, 1), ctx_, {prompt});
    EXPECT_EQ(run(*random_model(config, threads_, 1), ctx_, {prompt}), a);
    EXPECT_NE(run(*random_model(config, threads_, 2), ctx_, {prompt}), a);
    double squares = 0;
    for (const float v : a) squares += double{v} * v;
    const double deviation = std::sqrt(squares / static_cast<double>(a.size()));
    EXPECT_GT(deviation, 0.05);
    EXPECT_LT(deviation, 20);
  }
}

TEST_F(LoadTest, SizesThatOverflowAreErrors) {
  const Json json = {
      {"model_type", "mamba2"}, {"vocab_size", 1}, {"hidden_size", 1 << 23}, {"expand", 2},
      {"num_heads", 1 << 18},   {"head_dim", 64},  {"n_groups", 1},          {"num_hidden_layers", 16384}};
  const ModelConfig config = parse_config(json.dump(), "config.json");
  const std::string message = error_of([&] { random_model(config, threads_); });
  EXPECT_EQ(message.find("load model: all weights together must fit 63 bits, got "), 0u) << message;
}

}  // namespace
}  // namespace elapid::testing
