#pragma once

// Buffer: owns host memory; move-only. Pages are zero until written and take no memory until touched. Large buffers ask
// for huge pages: weights and activations are streamed, and 4 KiB pages cost a TLB miss every 64 cache lines.

#include <cstddef>
#include <cstdint>

namespace elapid {

class Buffer {
 public:
  Buffer() = default;
  // `bytes` ≥ 0 of zeroed memory, 64-byte aligned. An Error when the machine has not that much.
  explicit Buffer(int64_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;

  [[nodiscard]] void* data() const { return data_; }
  [[nodiscard]] int64_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace elapid
