#pragma once

// The safetensors format (https://github.com/huggingface/safetensors, README "Format"): u64 header length, JSON header,
// data. Reading checks everything before any tensor is handed out: header length against the file, every offset against
// shape, dtype and file size, no overlaps and no holes, no duplicate names, ranks ≤ 4.

#include "elapid/io/stored_tensor.h"

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace elapid {

// One file. Tensors are views into the mapped file and live as long as this object (or a copy of their entries' file).
// Their data may be unaligned when the file's author was careless: read elements with memcpy.
class Safetensors {
 public:
  using Entry = StoredTensor;

  static Safetensors open(const std::filesystem::path& file);
  // From memory, for tests and fuzzing; `what` names it in errors, the bytes must outlive the object.
  static Safetensors parse(Bytes bytes, const std::string& what);

  [[nodiscard]] bool contains(const std::string& name) const { return entries_.contains(name); }
  // An Error naming the tensor and the file when absent.
  [[nodiscard]] const Tensor& at(const std::string& name) const;
  [[nodiscard]] const StoredTensors& entries() const { return entries_; }
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  Safetensors(std::string what, Bytes bytes, const std::shared_ptr<const MappedFile>& file);
  std::string what_;  // names the file or bytes in errors
  StoredTensors entries_;
  std::map<std::string, std::string> metadata_;
};

// What to write: a dense tensor.
struct NamedTensor {
  std::string name;
  Tensor tensor;
};

// Writes a file of which no more than one tensor need be in memory, atomically (see AtomicFile). Data begins at a
// multiple of 64 bytes and is laid out by element size, the widest first, otherwise in the given order: every tensor is
// aligned to its elements.
class SafetensorsWriter {
 public:
  SafetensorsWriter(const std::filesystem::path& path, std::vector<TensorInfo> tensors,
                    const std::map<std::string, std::string>& metadata = {});

  // The tensors in the order in which write() takes them.
  [[nodiscard]] const std::vector<TensorInfo>& layout() const { return layout_; }
  // The next one: dense, of the dtype and shape that were announced.
  void write(const Tensor& tensor);
  // Once, after all tensors.
  void commit();

 private:
  std::string what_;
  std::vector<TensorInfo> layout_;
  size_t written_ = 0;
  AtomicFile file_;
};

// The same for tensors that are all in memory.
void write_safetensors(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace elapid
