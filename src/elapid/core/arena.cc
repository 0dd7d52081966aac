#include "elapid/core/arena.h"

#include "elapid/core/error.h"

#include <algorithm>
#include <cstring>

namespace elapid {
namespace {

constexpr int64_t kAlignment = 64;  // a cache line, and the widest vector
constexpr int64_t kDeviceStep = int64_t{64} << 20;
constexpr int64_t kSmallestReserve = int64_t{1} << 30;

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace

Arena::Arena(int64_t capacity, Device device) : device_(device), memory_(capacity, kSmallestReserve, "arena", device) {}

void Arena::commit(int64_t end) {
  require(end <= memory_.bytes(), "arena: must stay within its ", memory_.bytes(), " bytes, got a need of ", end);
  const int64_t target = round_up(end, Reservation::kStep);
  if (on_cuda(device_)) {
    // Mapping takes long: some at once, when there is some.
    const int64_t ahead = std::min(round_up(end, kDeviceStep), memory_.bytes());
    if (memory_.commit(committed_, ahead, true)) {
      committed_ = ahead;
      return;
    }
  }
  require(memory_.commit(committed_, target, true), "arena: must fit into this machine's memory, got a need of ", end,
          " bytes");
  committed_ = target;
}

void Arena::poison(void* p, int64_t bytes) const {
  if constexpr (kWithCuda) {
    if (on_cuda(device_)) return fill_async(p, 0xff, bytes, poison_stream_);
  }
  std::memset(p, 0xff, static_cast<size_t>(bytes));
}

Tensor Arena::alloc(Shape shape, DType dtype) {
  int64_t bytes = size_of(dtype);
  for (int i = 0; i < shape.rank; ++i) {
    require(shape[i] >= 0 && !__builtin_mul_overflow(bytes, shape[i], &bytes),
            "arena: a tensor's size must fit into 64 bits, got dimension ", shape[i]);
  }
  require(bytes <= memory_.bytes() - used_ - kAlignment, "arena: must stay within its ", memory_.bytes(),
          " bytes, got a need of ", used_, " + ", bytes);
  // Never an empty range: a tensor without elements is still present.
  const int64_t end = used_ + std::max(round_up(bytes, kAlignment), kAlignment);
  if (end > committed_) commit(end);
  char* p = memory_.data() + used_;
  used_ = end;
  peak_ = std::max(peak_, used_);
  if (poison_) poison(p, bytes);
  return {p, dtype, shape};
}

}  // namespace elapid
