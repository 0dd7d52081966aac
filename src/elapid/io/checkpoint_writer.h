#pragma once

// Writes a Hugging Face folder.

#include "elapid/io/stored_tensor.h"

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace elapid {

inline constexpr int64_t kDefaultShardBytes = 5'000'000'000;

// "5GB", "200 MB", "1.5GiB", "4096": decimal units, binary units, or bytes; upper or lower case. At least 1; an Error
// naming `what` otherwise.
int64_t parse_byte_size(std::string_view text, const std::string& what);

// Everything is written into a hidden folder inside of the new one and gets its name in commit(); without commit(),
// also because of an error, nothing is left behind. What loaders look for first, config.json and the weights' index,
// appears last.
class CheckpointWriter {
 public:
  // Called for each tensor right before it is written; what it returns must last until the next call.
  using Produce = std::function<Tensor(const TensorInfo& tensor)>;

  // A folder that does not exist yet, or an empty one.
  explicit CheckpointWriter(std::filesystem::path folder);
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // model.safetensors, or shards of at most `max_shard_bytes` (or one tensor that is larger) with their index, cut
  // where transformers cuts. Once.
  void write_tensors(const std::vector<TensorInfo>& tensors, const Produce& produce,
                     int64_t max_shard_bytes = kDefaultShardBytes,
                     const std::map<std::string, std::string>& metadata = {{"format", "pt"}});
  void write_file(const std::string& name, std::string_view contents);
  // The files of another folder that belong to a tokenizer and to generation: tokenizer*, vocabularies and merges,
  // special_tokens_map.json, added_tokens.json, chat_template*, generation_config.json. Returns their names.
  std::vector<std::string> copy_side_files(const std::filesystem::path& from);

  // Once. When it returns, the folder is on disk.
  void commit();

 private:
  void add(const std::string& name);
  void remove_all();

  std::filesystem::path folder_, temporary_;
  std::vector<std::filesystem::path> created_;  // folders, the innermost first
  std::vector<std::string> files_;              // in temporary_, in the order of writing
  size_t moved_ = 0;                            // how many of them have their name in folder_
  bool is_committed_ = false;
};

}  // namespace elapid
