// Part of builds with ELAPID_CUDA only.

#include "elapid/core/host_room.h"

#include <algorithm>

namespace elapid {
namespace {

constexpr int64_t kBlock = int64_t{1} << 20, kAlignment = 64;

}  // namespace

void HostRoom::free_blocks() noexcept {
  for (const Block& block : blocks_) free_pinned(block.memory);
}

Tensor HostRoom::alloc(Shape shape, DType dtype) {
  const int64_t bytes = (shape.size() * size_of(dtype) + kAlignment) / kAlignment * kAlignment;
  while (block_ < blocks_.size() && used_ + bytes > blocks_[block_].bytes) {
    ++block_;
    used_ = 0;
  }
  if (block_ == blocks_.size()) {
    const int64_t size = std::max(bytes, kBlock);
    blocks_.push_back({allocate_pinned(size), size});
  }
  char* at = static_cast<char*>(blocks_[block_].memory) + used_;
  used_ += bytes;
  return {at, dtype, shape};
}

}  // namespace elapid
