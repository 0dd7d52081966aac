#pragma once

// Flags that every command with a model or a tokenizer shares, and what they name.

#include "elapid/cli/flags.h"
#include "elapid/core/thread_pool.h"
#include "elapid/infer/engine.h"
#include "elapid/model/load.h"
#include "elapid/text/tokenizer.h"

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

namespace elapid::cli {

struct ModelOptions {
  std::optional<std::string> model, tokenizer;
  std::optional<GatedNorm> gated_norm;
  std::optional<Precision> precision;
  std::optional<std::string> packed_cache;
  Device device;
  int64_t threads = 0;  // 0: all that this process may use

  // --model --device --gated-norm --threads
  void add_folder(Flags& flags);
  // These, --dtype and --packed-cache
  void add(Flags& flags);
  void add_tokenizer(Flags& flags);

  // The named folder, or the bundled storyteller, which is said on standard error. Called once input was found good: an
  // error is one line.
  [[nodiscard]] std::filesystem::path folder() const;
  [[nodiscard]] std::unique_ptr<ThreadPool> start_threads() const;
  [[nodiscard]] LoadOptions load_options() const {
    return {.gated_norm = gated_norm, .precision = precision, .packed_cache = packed_cache, .device = device};
  }
  // The model, with what a person should know about it on standard error.
  [[nodiscard]] std::unique_ptr<Model> load(const std::filesystem::path& folder, ThreadPool& pool) const;
  // --tokenizer, else the model's own.
  [[nodiscard]] Tokenizer load_tokenizer(const std::filesystem::path& model_folder) const;
};

// On CUDA, what the model's memory there goes to and leaves, on standard error.
void note_memory_plan(const Model& model);

// Ids from here on are never drawn: rows of a padded vocabulary, and ids that the tokenizer, where there is one, lacks.
int64_t drawable_ids(const ModelConfig& config, const Tokenizer* tokenizer);

// --max-shard-size of the commands that write a folder.
void add_shard_size(Flags& flags, int64_t& bytes);

// How a model runs, for every command that runs one.
struct RunOptions {
  int64_t chunk = EngineOptions{}.chunk;
  DType state = EngineOptions{}.state;

  void add(Flags& flags);
};

}  // namespace elapid::cli
