#include "elapid/core/buffer.h"

#include "elapid/core/error.h"

#include <sys/mman.h>
#include <utility>

namespace elapid {

Buffer::Buffer(int64_t bytes, Device device) : bytes_(bytes), device_(device) {
  require(bytes >= 0, "buffer: size must not be negative, got ", bytes, " bytes");
  if (bytes == 0) return;
  if constexpr (kWithCuda) {
    if (on_cuda(device)) {
      data_ = allocate_on_device(device.index, bytes);
      fill_async(data_, 0, bytes, nullptr);
      synchronize(nullptr);  // streams of engines do not wait for the default one
      return;
    }
  }
  void* p = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  require(p != MAP_FAILED, "buffer: must fit into this machine's memory, got ", bytes, " bytes");
  constexpr int64_t kHugePage = int64_t{2} << 20;
  if (bytes >= kHugePage) madvise(p, static_cast<size_t>(bytes), MADV_HUGEPAGE);  // best effort
  data_ = p;
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if constexpr (kWithCuda) {
    if (on_cuda(device_)) {
      free_on_device(data_);
      return;
    }
  }
  munmap(data_, static_cast<size_t>(bytes_));
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)), device_(other.device_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(device_, other.device_);
  return *this;
}

}  // namespace elapid
