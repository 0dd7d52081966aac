#pragma once

// Checkpoint → the same checkpoint with its matrices in eight or four bits, as loading it in int8 or int4 rounds them.

#include "elapid/model/load.h"

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace elapid {

struct QuantizeOptions {
  Precision precision = Precision::int8;  // or int4
  int64_t max_shard_bytes = 5'000'000'000;
  // Called with bytes of tensors, written so far and in all.
  std::function<void(int64_t done, int64_t total)> progress{};
};

struct QuantizedFolder {
  std::string family;
  int64_t tensors = 0, quantized = 0;  // of the source, and how many of them are codes now
  int64_t bytes = 0, original_bytes = 0;
  std::vector<std::string> side_files;
};

// Writes `output`, which must not exist or be empty. Loaded in the same precision, it holds the same bits in memory as
// `folder` does: what is rounded is the same in the same groups, and all else is stored as it was.
QuantizedFolder quantize_checkpoint(const std::filesystem::path& folder, const std::filesystem::path& output,
                                    ThreadPool& threads, const QuantizeOptions& options);

}  // namespace elapid
