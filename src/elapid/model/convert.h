#pragma once

// Checkpoint of any dialect → Hugging Face folder that transformers loads with equal logits.

#include "elapid/model/load.h"

#include <filesystem>
#include <string>
#include <vector>

namespace elapid {

struct ConvertOptions {
  LoadOptions load{};
  int64_t max_shard_bytes = 5'000'000'000;
};

struct Conversion {
  std::string family;  // the written folder's model_type
  int64_t tensors = 0, bytes = 0;
  std::vector<std::string> side_files;  // copied beside the weights: the tokenizer's and generation's
};

// Writes `output`, which must not exist or be empty, from `folder`: tensors bit for bit, under transformers' names. An
// Error when no class of transformers computes this model.
Conversion convert_checkpoint(const std::filesystem::path& folder, const std::filesystem::path& output,
                              const ConvertOptions& options = {});

}  // namespace elapid
