#include "elapid/io/file.h"

#include "elapid/core/error.h"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cerrno>
#include <fcntl.h>
#include <string>
#include <sys/mman.h>
#include <sys/stat.h>
#include <system_error>
#include <unistd.h>
#include <utility>

namespace elapid {
namespace {

namespace fs = std::filesystem;

std::string message_of(int error) { return std::generic_category().message(error); }

[[noreturn]] void fail_to_read(const fs::path& path, const std::string& got) {
  fail(concat(path.string(), ": must be a readable regular file, got: ", got));
}

[[noreturn]] void fail_to_write(const fs::path& path, const std::string& got) {
  fail(concat(path.string(), ": must be writable, got: ", got));
}

std::string kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

// Repeats a system call for as long as signals interrupt it.
template <class Call>
auto retry(Call call) {
  while (true) {
    const auto result = call();
    if (result != -1 || errno != EINTR) return result;
  }
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

// A regular file open for reading. O_NONBLOCK: opening a pipe without a writer must not wait.
class RegularFile {
 public:
  explicit RegularFile(const fs::path& path)
      : descriptor_(retry([&] { return ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY); })) {
    struct stat status {};
    if (fd() < 0 || ::fstat(fd(), &status) != 0) fail_to_read(path, message_of(errno));
    if (!S_ISREG(status.st_mode)) fail_to_read(path, kind_of(status.st_mode));
    size_ = static_cast<size_t>(status.st_size);
    constexpr int64_t kNanoseconds = 1'000'000'000;
    identity_ = {status.st_dev, status.st_ino, status.st_size,
                 status.st_mtim.tv_sec * kNanoseconds + status.st_mtim.tv_nsec};
  }
  [[nodiscard]] int fd() const { return descriptor_.get(); }
  [[nodiscard]] size_t size() const { return size_; }
  [[nodiscard]] const FileIdentity& identity() const { return identity_; }

 private:
  Descriptor descriptor_;
  size_t size_ = 0;
  FileIdentity identity_;
};

bool is_in_proc(const fs::path& path) {
  std::error_code ignored;
  return fs::weakly_canonical(path.parent_path(), ignored).append("").string().starts_with("/proc/");
}

// What writing to `path` writes to. Links are followed one by one: a dangling one names the file to create, and one
// into /proc (which is what /dev/stdout is) stands for an open descriptor, not for a name that could be renamed over.
fs::path follow_links(const fs::path& path) {
  constexpr int kMaxLinks = 40;
  fs::path target = path;
  for (int i = 0; i < kMaxLinks; ++i) {
    std::error_code error;
    if (is_in_proc(target) || !fs::is_symlink(fs::symlink_status(target, error))) return target;
    const fs::path next = fs::read_symlink(target, error);
    if (error) fail_to_write(path, error.message());
    target = target.parent_path() / next;
  }
  fail_to_write(path, message_of(ELOOP));
}

// Names no other writer has: processes differ in id, writers of one process in number, and O_EXCL finds the leftovers
// of a killed process that had the same id.
fs::path temporary_beside(const fs::path& path) {
  static std::atomic<uint64_t> counter{0};
  return path.parent_path() / concat(".elapid-", ::getpid(), "-", counter.fetch_add(1), ".tmp");
}

}  // namespace

MappedFile::MappedFile(fs::path path, const std::byte* data, size_t size)
    : path_(std::move(path)), data_(data), size_(size) {}

std::shared_ptr<const MappedFile> MappedFile::open(const fs::path& path) {
  const RegularFile source(path);
  // Made first, so that nothing can throw between mapping and owning. mmap refuses empty files.
  const std::shared_ptr<MappedFile> file(new MappedFile(path, nullptr, 0));
  file->identity_ = source.identity();
  if (source.size() == 0) return file;
  void* const data = ::mmap(nullptr, source.size(), PROT_READ, MAP_PRIVATE, source.fd(), 0);
  if (data == MAP_FAILED) fail_to_read(path, message_of(errno));
  file->data_ = static_cast<const std::byte*>(data);
  file->size_ = source.size();
  return file;
}

std::shared_ptr<const MappedFile> MappedFile::from_memory(const fs::path& path, Buffer memory,
                                                          const FileIdentity& identity) {
  const auto* const data = static_cast<const std::byte*>(memory.data());
  const std::shared_ptr<MappedFile> file(new MappedFile(path, data, static_cast<size_t>(memory.bytes())));
  file->memory_ = std::move(memory);
  file->identity_ = identity;
  return file;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr && memory_.data() == nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::drop_pages(Bytes range) const {
  if (range.empty() || memory_.data() != nullptr) return;
  assert(range.data() >= data_ && range.data() + range.size() <= data_ + size_);
  // A fault maps all of a large folio. What else is in it comes back when it is read.
  constexpr size_t kFolio = size_t{2} << 20;
  const auto offset = static_cast<size_t>(range.data() - data_);
  const size_t begin = offset / kFolio * kFolio;
  const size_t end = std::min((offset + range.size() + kFolio - 1) / kFolio * kFolio, size_);
  // Advice: when the kernel refuses, memory is the only loss.
  ::madvise(const_cast<std::byte*>(data_) + begin, end - begin, MADV_DONTNEED);
}

bool is_folder(const fs::path& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

std::string read_text_file(const fs::path& path, int64_t limit) {
  const RegularFile source(path);
  const auto check_limit = [&](size_t size) {
    require(std::cmp_less_equal(size, limit), path.string(), ": must have at most ", limit, " bytes, got ", size);
  };
  check_limit(source.size());
  // Files of /proc, and files that grow, have more bytes than they say: read until the end.
  constexpr size_t kLeast = 4096;
  std::string text(std::max(source.size() + 1, kLeast), '\0');
  size_t filled = 0;
  while (true) {
    if (filled == text.size()) text.resize(2 * filled);
    const ssize_t count = retry([&] { return ::read(source.fd(), text.data() + filled, text.size() - filled); });
    if (count < 0) fail_to_read(path, message_of(errno));
    if (count == 0) break;
    filled += static_cast<size_t>(count);
    check_limit(filled);
  }
  text.resize(filled);
  return text;
}

void sync_folder(const fs::path& folder) {
  const Descriptor descriptor(retry([&] { return ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
  if (descriptor.get() >= 0) ::fsync(descriptor.get());
}

AtomicFile::AtomicFile(fs::path path) : path_(std::move(path)) {
  fs::path target = follow_links(path_);
  struct stat status {};
  const bool exists = ::stat(target.c_str(), &status) == 0;
  if (exists && S_ISDIR(status.st_mode)) fail_to_write(path_, kind_of(status.st_mode));
  if (is_in_proc(target) || (exists && !S_ISREG(status.st_mode))) {
    fd_ = retry([&] { return ::open(target.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC | O_NOCTTY); });
    if (fd_ < 0) fail_to_write(path_, message_of(errno));
    return;
  }
  do {
    temporary_ = temporary_beside(target);
    fd_ = retry([&] { return ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666); });
  } while (fd_ < 0 && errno == EEXIST);
  if (fd_ < 0) fail_to_write(path_, message_of(errno));
  if (exists) ::fchmod(fd_, status.st_mode & 0777);  // best effort: a file of somebody else may be replaceable too
  path_ = std::move(target);
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(Bytes bytes) {
  assert(fd_ >= 0);
  while (!bytes.empty()) {
    // The kernel writes at most 2 GiB at a time, and less whenever it likes.
    const ssize_t count = retry([&] { return ::write(fd_, bytes.data(), bytes.size()); });
    if (count < 0) fail_to_write(path_, message_of(errno));
    bytes = bytes.subspan(static_cast<size_t>(count));
  }
}

void AtomicFile::write(std::string_view text) { write(std::as_bytes(std::span(text))); }

void AtomicFile::commit() {
  assert(fd_ >= 0);
  const bool is_direct = temporary_.empty();
  if (!is_direct && retry([&] { return ::fsync(fd_); }) != 0) fail_to_write(path_, message_of(errno));
  // Linux closes the descriptor also when close() reports an interruption.
  if (::close(std::exchange(fd_, -1)) != 0 && errno != EINTR) fail_to_write(path_, message_of(errno));
  if (is_direct) return;
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail_to_write(path_, message_of(errno));
  temporary_.clear();
  // The rename itself must survive a crash too; not every file system can sync a folder, and the contents are safe.
  sync_folder(path_.has_parent_path() ? path_.parent_path() : fs::path("."));
}

}  // namespace elapid
