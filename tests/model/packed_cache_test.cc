#include "elapid/model/packed_cache.h"

#include "tests/model/fixtures.h"

#include <chrono>
#include <csignal>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

namespace elapid::testing {
namespace {

std::string contents(const fs::path& path) { return read_text_file(path); }

class PackedCacheTest : public ::testing::Test {
 protected:
  std::unique_ptr<Model> load(const fs::path& folder, std::optional<Precision> precision, bool verify = false) {
    return load_model(folder, threads_,
                      {.precision = precision, .packed_cache = cache_.path() / "made", .verify_packed = verify});
  }
  std::vector<float> logits(const Model& model) { return run(model, ctx_, {{{5, 17, 3, 90, 41, 8, 8}}}); }
  std::vector<fs::path> kept() {
    std::vector<fs::path> files;
    std::error_code none;
    for (const auto& entry : fs::directory_iterator(cache_.path() / "made", none)) files.push_back(entry.path());
    return files;
  }
  fs::path copy_of(const std::string& name) {
    fs::copy(case_folder(name), model_.path(), fs::copy_options::recursive);
    return model_.path();
  }

  TemporaryFolder cache_, model_;
  ThreadPool threads_{2};
  Arena arena_;
  Context ctx_{{}, threads_, arena_};
};

TEST_F(PackedCacheTest, AMappedModelIsTheModel) {
  for (const char* name : {"mamba2_default", "mamba2_groups", "zamba2_default", "granitemoe_default", "jamba_default",
                           "state_spaces/ss_mamba1"}) {
    for (const std::optional<Precision> precision :
         {std::optional<Precision>(), std::optional(Precision::f32), std::optional(Precision::bf16),
          std::optional(Precision::int8), std::optional(Precision::int4)}) {
      SCOPED_TRACE(concat(name, ' ', precision ? name_of(*precision) : "auto"));
      const auto plain = load_model(case_folder(name), threads_, {.precision = precision});
      const size_t before = kept().size();
      const auto first = load(case_folder(name), precision);
      EXPECT_EQ(kept().size(), before + 1);
      const auto again = load(case_folder(name), precision, true);
      EXPECT_EQ(kept().size(), before + 1);
      for (const auto* model : {first.get(), again.get()}) {
        EXPECT_EQ(logits(*model), logits(*plain));
        EXPECT_EQ(model->config().notes, plain->config().notes);
        EXPECT_EQ(model->state_spec()->fingerprint(), plain->state_spec()->fingerprint());
        EXPECT_EQ(model->weights().bytes, plain->weights().bytes);
        EXPECT_EQ(model->weights().bytes_per_token, plain->weights().bytes_per_token);
        EXPECT_EQ(model->weights().matrix_elements, plain->weights().matrix_elements);
        EXPECT_EQ(model->weights().elements_by_dtype, plain->weights().elements_by_dtype);
        EXPECT_EQ(model->weights().precision, plain->weights().precision);
      }
    }
  }
}

// That the second load really uses the file: it computes with what somebody changed in it.
TEST_F(PackedCacheTest, ASecondLoadReadsTheFileAndDamageIsReplaced) {
  const fs::path folder = copy_of("mamba2_default");
  const std::vector<float> right = logits(*load(folder, Precision::f32));
  ASSERT_EQ(kept().size(), 1u);
  const fs::path file = kept()[0];
  const std::string good = contents(file);

  std::string other = good;
  for (size_t i = good.size() / 2; i < good.size(); ++i) other[i] = 0;
  write_text(file, other);
  EXPECT_NE(logits(*load(folder, Precision::f32)), right);
  EXPECT_EQ(contents(file), other);
  EXPECT_EQ(logits(*load(folder, Precision::f32, true)), right);
  EXPECT_EQ(contents(file), good);

  std::vector<std::string> damaged = {"",
                                      good.substr(0, 5),
                                      good.substr(0, 4096),
                                      good.substr(0, good.size() - 1),
                                      good + "x",
                                      std::string(good.size(), '\0'),
                                      std::string(good.size(), '\xff')};
  for (size_t at = 0; at < 120; ++at) {  // every byte that the header has
    damaged.push_back(good);
    damaged.back()[at] = static_cast<char>(damaged.back()[at] ^ 0x40);
  }
  for (const std::string& bytes : damaged) {
    write_text(file, bytes);
    EXPECT_EQ(logits(*load(folder, Precision::f32)), right);
    ASSERT_EQ(contents(file), good);
  }
  EXPECT_EQ(kept().size(), 1u);
}

TEST_F(PackedCacheTest, AChangedCheckpointIsAnother) {
  const fs::path folder = copy_of("mamba2_default"), weights = folder / "model.safetensors";
  const std::vector<float> right = logits(*load(folder, Precision::f32));
  // Other values in a file of the same size and time: replaced by rename, so its inode differs.
  std::string bytes = contents(weights);
  bytes[bytes.size() - 1] = static_cast<char>(bytes[bytes.size() - 1] ^ 0x10);
  const auto time = fs::last_write_time(weights);
  write_text(folder / "new", bytes);
  fs::last_write_time(folder / "new", time);
  fs::rename(folder / "new", weights);
  EXPECT_NE(logits(*load(folder, Precision::f32)), right);
  EXPECT_EQ(kept().size(), 2u);
  // In place: its time differs.
  bytes[bytes.size() - 1] = static_cast<char>(bytes[bytes.size() - 1] ^ 0x10);
  write_text(weights, bytes);
  fs::last_write_time(weights, time + std::chrono::nanoseconds(1));
  EXPECT_EQ(logits(*load(folder, Precision::f32)), right);
  EXPECT_EQ(kept().size(), 3u);
  // A configuration that gives a tensor another place.
  Json config = read_json(folder / "config.json");
  config["tie_word_embeddings"] = false;
  write_text(folder / "config.json", config.dump());
  EXPECT_NE(error_of([&] { load(folder, Precision::f32); }), "no error");
  EXPECT_EQ(kept().size(), 3u);
}

TEST_F(PackedCacheTest, WhatCannotBeKeptIsANote) {
  const fs::path folder = case_folder("mamba2_default");
  const std::vector<float> right = logits(*load_model(folder, threads_));
  const auto check = [&](const fs::path& cache, const std::string& says) {
    const auto model = load_model(folder, threads_, {.packed_cache = cache});
    EXPECT_EQ(logits(*model), right);
    ASSERT_EQ(model->config().notes.size(), 1u);
    EXPECT_EQ(model->config().notes[0].find("packed weights are not kept: "), 0u) << model->config().notes[0];
    EXPECT_NE(model->config().notes[0].find(says), std::string::npos) << model->config().notes[0];
  };
  write_text(cache_.path() / "file", "no folder");
  check(cache_.path() / "file", "file");
  check("/proc/elapid", "/proc/elapid");
  // Something else under the file's name.
  load(folder, Precision::f32);
  ASSERT_EQ(kept().size(), 1u);
  const fs::path file = kept()[0];
  fs::remove(file);
  fs::create_directory(file);
  check(cache_.path() / "made", "must be a regular file");
  fs::remove(file);
  ASSERT_EQ(mkfifo(file.c_str(), 0600), 0);
  check(cache_.path() / "made", "must be a regular file");
  fs::remove(file);
  // A disk that fills up.
  rlimit old{};
  getrlimit(RLIMIT_FSIZE, &old);
  const rlimit small{5000, old.rlim_max};
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &small);
  check(cache_.path() / "made", "must be writable");
  setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, handler);
  EXPECT_TRUE(kept().empty());
}

}  // namespace
}  // namespace elapid::testing
