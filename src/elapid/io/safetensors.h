#pragma once

// The safetensors format (https://github.com/huggingface/safetensors, README "Format"): u64 header length, JSON header,
// data. Reading checks everything before any tensor is handed out: header length against the file, every offset against
// shape, dtype and file size, no overlaps and no holes, no duplicate names, ranks ≤ 4.

#include "elapid/core/tensor.h"
#include "elapid/io/file.h"

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace elapid {

// One file, or a set of shards seen as one. Tensors are views into the mapped files and live as long as this object (or
// a copy of its files()). Their data may be unaligned when the file's author was careless: read elements with memcpy.
class Safetensors {
 public:
  struct Entry {
    Tensor tensor;
    std::shared_ptr<const MappedFile> file;  // keeps the tensor alive
  };

  static Safetensors open(const std::filesystem::path& file);
  // The weights of a Hugging Face folder: model.safetensors, or the shards that model.safetensors.index.json lists
  // (its weight_map must agree with the shards exactly; shard names must not leave the folder).
  static Safetensors open_folder(const std::filesystem::path& folder);
  // From memory, for tests and fuzzing; `what` names it in errors, the bytes must outlive the object.
  static Safetensors parse(Bytes bytes, const std::string& what);

  [[nodiscard]] bool contains(const std::string& name) const { return entries_.contains(name); }
  // An Error naming the tensor and the file when absent.
  [[nodiscard]] const Tensor& at(const std::string& name) const;
  [[nodiscard]] const std::map<std::string, Entry>& entries() const { return entries_; }
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  Safetensors(std::string what, Bytes bytes, const std::shared_ptr<const MappedFile>& file);
  explicit Safetensors(std::string what) : what_(std::move(what)) {}
  std::string what_;  // names the file, folder or bytes in errors
  std::map<std::string, Entry> entries_;
  std::map<std::string, std::string> metadata_;
};

// What to write: a dense tensor.
struct NamedTensor {
  std::string name;
  Tensor tensor;
};

// Writes atomically (see AtomicFile). Data begins at a multiple of 64 bytes and is laid out by element size, the widest
// first, otherwise in the given order: every tensor is aligned to its elements.
void write_safetensors(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace elapid
