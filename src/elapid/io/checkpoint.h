#pragma once

// The weights of a folder, in whichever of the usual forms they are there.

#include "elapid/io/stored_tensor.h"

#include <filesystem>
#include <string>
#include <utility>

namespace elapid {

// One file, or a set of shards seen as one. Tensors are dense views of the mapped files and live as long as this object
// (or a copy of the files of its entries). Their data may be unaligned: read elements with memcpy.
class Checkpoint {
 public:
  using Entry = StoredTensor;

  // The first of these that is there:
  //   model.safetensors, model.safetensors.index.json          Hugging Face
  //   pytorch_model.bin, pytorch_model.bin.index.json          the same, and state-spaces; see torch_file.h
  //   consolidated.safetensors, consolidated.safetensors.index.json, consolidated-00001-of-0000N.safetensors   Mistral
  // An index's weight_map must agree with the shards exactly; shard names must not leave the folder.
  static Checkpoint open_folder(const std::filesystem::path& folder);

  [[nodiscard]] bool contains(const std::string& name) const { return entries_.contains(name); }
  // An Error naming the tensor and the folder when absent.
  [[nodiscard]] const Tensor& at(const std::string& name) const;
  [[nodiscard]] const StoredTensors& entries() const { return entries_; }

 private:
  Checkpoint(std::string what, StoredTensors entries) : what_(std::move(what)), entries_(std::move(entries)) {}
  std::string what_;  // names the file or folder in errors
  StoredTensors entries_;
};

}  // namespace elapid
