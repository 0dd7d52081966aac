#pragma once

// generation_config.json: what a checkpoint's authors say about sampling.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

namespace elapid::cli {

struct GenerationConfig {
  std::optional<bool> do_sample;
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k, max_new_tokens;
  std::optional<std::vector<int64_t>> eos_ids;
};

// Of a model folder; empty when it has no such file. An Error names a key whose value makes no sense.
GenerationConfig load_generation_config(const std::filesystem::path& folder);

}  // namespace elapid::cli
