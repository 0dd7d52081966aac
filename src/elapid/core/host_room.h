#pragma once

// HostRoom: pinned host memory for what the host writes and a device copies, or the other way round: the small
// tables that a step's operators compute for kernels, logits, weights on their way. Of builds with CUDA. A bump
// allocator: what was handed out stays where it is, with what was written to it, until reset().

#include "elapid/core/device.h"
#include "elapid/core/tensor.h"

#include <vector>

namespace elapid {

class HostRoom {
 public:
  HostRoom() = default;
  ~HostRoom() {
    if constexpr (kWithCuda) free_blocks();
  }
  HostRoom(HostRoom&& other) noexcept : blocks_(std::exchange(other.blocks_, {})) {
    std::swap(block_, other.block_);
    std::swap(used_, other.used_);
  }
  HostRoom& operator=(HostRoom&&) = delete;

  // Dense, undefined contents, 64-byte aligned.
  Tensor alloc(Shape shape, DType dtype);
  // Everything handed out is free again. Call when the copies from it are done.
  void reset() { block_ = used_ = 0; }

 private:
  void free_blocks() noexcept;
  struct Block {
    void* memory;
    int64_t bytes;
  };
  std::vector<Block> blocks_;
  size_t block_ = 0;  // the one in use
  int64_t used_ = 0;  // bytes of it
};

}  // namespace elapid
