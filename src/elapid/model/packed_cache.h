#pragma once

// PackedCache: a folder of packed weights, so that loading a model again maps a file instead of packing, and processes
// share its pages. A file belongs to one checkpoint (names, types, shapes and places of its tensors; device, inode,
// size and time of change of its files), one precision and one form of packing; anything else is another file.
//
// The header is checked at every opening, the contents only on demand: whoever can write to the folder is trusted with
// the weights. The folder may be emptied at any time.

#include "elapid/io/checkpoint.h"
#include "elapid/model/builder.h"

#include <filesystem>
#include <optional>
#include <string>

namespace elapid {

class PackedCache {
 public:
  PackedCache(std::filesystem::path folder, const Checkpoint& checkpoint, std::optional<Precision> precision);

  // The packed weights of that layout, or nothing when there is no such file, or one that is damaged. `verify` also
  // reads all of them.
  [[nodiscard]] ModelBuilder::Packed find(const std::string& layout, int64_t bytes, bool verify = false) const;
  // Keeps them, in place of what find() did not accept. An Error that tells why when they cannot be written; nothing is
  // left behind then.
  void keep(const std::string& layout, Bytes weights) const;

  // Where weights of that layout are kept.
  [[nodiscard]] std::filesystem::path path_of(const std::string& layout) const;

 private:
  [[nodiscard]] std::string key_of(const std::string& layout) const;

  std::filesystem::path folder_;
  std::string source_;  // what the packed weights are made from, as text
};

}  // namespace elapid
