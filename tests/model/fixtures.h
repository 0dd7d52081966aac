#pragma once

// Checkpoints and a minimal runner for tests of whole models.

#include "elapid/core/error.h"
#include "elapid/core/random.h"
#include "elapid/io/json.h"
#include "elapid/io/safetensors.h"
#include "elapid/model/checkpoint_rules.h"
#include "elapid/model/load.h"
#include "elapid/model/model.h"
#include "elapid/state/pool.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <unistd.h>
#include <vector>

namespace elapid::testing {

namespace fs = std::filesystem;

inline fs::path data_folder() { return fs::path(ELAPID_SOURCE_DIR) / "tests" / "data"; }
inline fs::path case_folder(const std::string& name) { return data_folder() / "conformance" / name; }
inline fs::path storyteller_folder() { return fs::path(ELAPID_SOURCE_DIR) / "models" / "storyteller"; }

// Every conformance case: "mamba2_bias", "state_spaces/ss_mamba1", …
inline std::vector<std::string> conformance_cases() {
  const fs::path root = data_folder() / "conformance";
  std::vector<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    const fs::path folder = entry.path().parent_path();
    if (entry.path().filename() == "meta.json" && folder.filename() != "ops") {
      names.push_back(folder.lexically_relative(root).string());
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}
// Its part behind the slash: test names have none.
inline std::string test_name(const std::string& conformance_case) {
  return conformance_case.substr(conformance_case.find('/') + 1);
}

// A folder of its own, removed at the end.
class TemporaryFolder {
 public:
  TemporaryFolder() : path_(fs::temp_directory_path() / concat("elapid_model_test_", getpid(), "_", count_++)) {
    fs::create_directories(path_);
  }
  ~TemporaryFolder() { fs::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  [[nodiscard]] const fs::path& path() const { return path_; }

 private:
  static inline int count_ = 0;
  fs::path path_;
};

inline void write_text(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

inline Json read_json(const fs::path& path) { return parse_json(read_text_file(path), path.string()); }

// Message of the Error that `action` throws.
template <class Action>
std::string error_of(const Action& action) {
  try {
    action();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

// A checkpoint of random values with the tensors that a configuration asks for.
class RandomCheckpoint {
 public:
  explicit RandomCheckpoint(const ModelConfig& config) {
    const CheckpointRules rules = checkpoint_rules(config);
    Model model(config);
    uint64_t stream = 0;
    model.visit([&](const ParameterInfo& info) {
      for (const NameRule& rule : rules.at(info.name)) {
        const Shape shape = rule.shape.rank == 0 ? info.shape : rule.shape;
        memory_.emplace_back(shape.size() * size_of(DType::f32));
        const Tensor tensor(memory_.back().data(), DType::f32, shape);
        for (int64_t i = 0; i < tensor.size(); ++i) {
          tensor.ptr<float>()[i] = static_cast<float>(uniform(7, static_cast<uint64_t>(i), stream) - 0.5);
        }
        ++stream;
        tensors.push_back({rule.theirs, tensor});
      }
    });
  }
  std::vector<NamedTensor> tensors;

 private:
  std::vector<Buffer> memory_;
};

struct Sequence {
  std::vector<TokenId> tokens;
  int64_t slot = kNoSlot;
};

// One forward call over whole sequences; logits of every token, and the residual stream when asked for.
inline std::vector<float> run(const Model& model, Context& ctx, const std::vector<Sequence>& sequences,
                              StatePool* states = nullptr, std::vector<std::vector<float>>* residuals = nullptr) {
  std::vector<TokenId> tokens;
  std::vector<int64_t> offsets = {0}, slots, outputs, past;
  for (const Sequence& s : sequences) {
    tokens.insert(tokens.end(), s.tokens.begin(), s.tokens.end());
    offsets.push_back(static_cast<int64_t>(tokens.size()));
    slots.push_back(s.slot);
    past.push_back(s.slot == kNoSlot ? 0 : states->length(s.slot));
    if (s.slot != kNoSlot) states->extend(s.slot, static_cast<int64_t>(s.tokens.size()));
  }
  for (size_t i = 0; i < tokens.size(); ++i) outputs.push_back(static_cast<int64_t>(i));
  const auto size = [](const auto& v) { return static_cast<int64_t>(v.size()); };
  const Batch batch{.tokens = Tensor(tokens.data(), DType::i32, {size(tokens)}),
                    .offsets = Tensor(offsets.data(), DType::i64, {size(offsets)}),
                    .slots = Tensor(slots.data(), DType::i64, {size(slots)}),
                    .outputs = Tensor(outputs.data(), DType::i64, {size(outputs)}),
                    .past = Tensor(past.data(), DType::i64, {size(past)})};
  Observer observer;
  observer.residual = [&](int64_t, const Tensor& x) {
    residuals->emplace_back(x.ptr<float>(), x.ptr<float>() + x.size());
  };
  const Arena::Scope scope(ctx.arena);
  const Pass pass{.batch = batch, .states = states, .observer = residuals == nullptr ? nullptr : &observer};
  const Tensor logits = model.logits(ctx, model.hidden(ctx, pass));
  for (const Sequence& s : sequences) {
    if (s.slot != kNoSlot) states->advance(s.slot, static_cast<int64_t>(s.tokens.size()));
  }
  return {logits.ptr<float>(), logits.ptr<float>() + logits.size()};
}

}  // namespace elapid::testing
