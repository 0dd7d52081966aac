#pragma once

// Files: read-only mappings, and writing so that a failure leaves nothing behind.

#include "elapid/core/buffer.h"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace elapid {

using Bytes = std::span<const std::byte>;

// What tells a file from others and from itself after a change, as far as a file system does.
struct FileIdentity {
  uint64_t device = 0, inode = 0;
  int64_t size = 0, modified = 0;  // bytes; nanoseconds since 1970
};

// A regular file mapped read-only. Shared: tensors that view it keep it alive. Errors name the path and the reason
// (missing, a directory, a symlink loop, no permission). The file must not shrink while it is mapped: reading beyond
// its new end is SIGBUS, as with every mapping. Replacing it by rename, as AtomicFile does, is harmless.
class MappedFile {
 public:
  static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path);
  // Memory that stands for a part of the file at `path` which could not be used as it is there.
  static std::shared_ptr<const MappedFile> from_memory(const std::filesystem::path& path, Buffer memory,
                                                       const FileIdentity& identity = {});
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  [[nodiscard]] Bytes bytes() const { return {data_, size_}; }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  // Of the file as it was opened.
  [[nodiscard]] const FileIdentity& identity() const { return identity_; }

  // Tells the kernel that the resident pages of this range, and around it to multiples of 2 MiB (as much may have come
  // with one page), are not needed here now. They stay in the page cache. Nothing happens to memory that is no mapping.
  void drop_pages(Bytes range) const;

 private:
  MappedFile(std::filesystem::path path, const std::byte* data, size_t size);
  std::filesystem::path path_;
  const std::byte* data_;
  size_t size_;
  FileIdentity identity_;
  Buffer memory_;  // what data_ points into, unless it is a mapping
};

// Whether `path` is a folder, or a link to one; whatever else it is, no.
bool is_folder(const std::filesystem::path& path);

// The whole regular file as text. `limit` bounds the size in bytes.
std::string read_text_file(const std::filesystem::path& path, int64_t limit = int64_t{1} << 30);

// Makes the names of a folder's files survive a crash, where the file system can.
void sync_folder(const std::filesystem::path& folder);

// Writes to a temporary file beside `path` and renames it over `path` in commit(): readers see the old file or the
// whole new one; without commit() nothing is left behind. A symbolic link is followed, not replaced; an existing file's
// mode is kept. What cannot be replaced (a terminal, a pipe, /dev/stdout) is written directly.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(Bytes bytes);
  void write(std::string_view text);
  // Once, after the last write(): when it returns, the contents are on disk under `path`.
  void commit();

 private:
  std::filesystem::path path_, temporary_;  // temporary_ is empty when there is nothing to rename or remove
  int fd_ = -1;
};

}  // namespace elapid
