#include "elapid/core/reservation.h"

#include "elapid/core/error.h"

#include <cassert>
#include <sys/mman.h>
#include <utility>

namespace elapid {

namespace {

// Null when there is no such range.
void* reserve(int64_t bytes, Device device) {
  if constexpr (kWithCuda) {
    if (on_cuda(device)) return reserve_addresses(device.index, bytes);
  }
  void* p = mmap(nullptr, static_cast<size_t>(bytes), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? nullptr : p;
}

}  // namespace

Reservation::Reservation(int64_t wanted, int64_t least, const char* what, Device device) : device_(device) {
  const auto rounded = [](int64_t n) { return (n <= kStep ? kStep : n + kStep - 1) / kStep * kStep; };
  for (int64_t bytes = rounded(wanted);; bytes = rounded(bytes / 2)) {
    if (void* p = reserve(bytes, device); p != nullptr) {
      data_ = static_cast<char*>(p);
      bytes_ = bytes;
      return;
    }
    require(bytes / 2 >= least && bytes > kStep, what, ": must be able to reserve addresses, got no range of ", bytes,
            " bytes");
  }
}

Reservation::~Reservation() {
  if (data_ == nullptr) return;
  if constexpr (kWithCuda) {
    if (on_cuda(device_)) {
      for (const Part& part : mapped_) unmap_memory(data_ + part.begin, part.end - part.begin);
      release_addresses(data_, bytes_);
      return;
    }
  }
  munmap(data_, static_cast<size_t>(bytes_));
}

Reservation::Reservation(Reservation&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      device_(other.device_),
      mapped_(std::exchange(other.mapped_, {})) {}

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(device_, other.device_);
  std::swap(mapped_, other.mapped_);
  return *this;
}

bool Reservation::commit(int64_t begin, int64_t end, bool huge_pages) {
  assert(begin % kStep == 0 && end % kStep == 0 && 0 <= begin && begin <= end && end <= bytes_);
  if constexpr (kWithCuda) {
    if (on_cuda(device_)) {
      if (begin == end) return true;
      mapped_.push_back({begin, end});
      if (map_memory(device_.index, data_ + begin, end - begin)) return true;
      mapped_.pop_back();
      return false;
    }
  }
  const auto length = static_cast<size_t>(end - begin);
  if (mprotect(data_ + begin, length, PROT_READ | PROT_WRITE) != 0) return false;
  if (huge_pages) madvise(data_ + begin, length, MADV_HUGEPAGE);  // best effort
  return true;
}

void Reservation::give_back(int64_t begin, int64_t end) const {
  if (on_cuda(device_)) return;
  constexpr int64_t kPage = 4096;
  begin = (begin + kPage - 1) / kPage * kPage;
  end = end / kPage * kPage;
  if (begin < end) madvise(data_ + begin, static_cast<size_t>(end - begin), MADV_DONTNEED);
}

}  // namespace elapid
