#pragma once

// Buffer: owns memory of the host or of a device; move-only. Host pages are zero until written and take no memory until
// touched. Large buffers ask for huge pages: weights and activations are streamed, and 4 KiB pages cost a TLB miss
// every 64 cache lines.

#include "elapid/core/device.h"

#include <cstddef>
#include <cstdint>

namespace elapid {

class Buffer {
 public:
  Buffer() = default;
  // `bytes` ≥ 0 of zeroed memory, 64-byte aligned. An Error when the machine has not that much.
  explicit Buffer(int64_t bytes, Device device = {});
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;

  [[nodiscard]] void* data() const { return data_; }
  [[nodiscard]] int64_t bytes() const { return bytes_; }
  [[nodiscard]] Device device() const { return device_; }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
  Device device_;
};

}  // namespace elapid
