#include "elapid/core/arena.h"

#include "elapid/core/error.h"

#include <algorithm>
#include <cstring>
#include <sys/mman.h>

namespace elapid {
namespace {

constexpr int64_t kAlignment = 64;                 // a cache line, and the widest vector
constexpr int64_t kCommitStep = int64_t{2} << 20;  // a huge page
constexpr int64_t kSmallestReserve = int64_t{1} << 30;

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace

Arena::Arena(int64_t capacity) {
  // An address-space limit (ulimit -v) may refuse a large reservation although little of it would ever be used.
  for (int64_t reserve = round_up(capacity, kCommitStep);; reserve /= 2) {
    void* p =
        mmap(nullptr, static_cast<size_t>(reserve), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p != MAP_FAILED) {
      base_ = static_cast<char*>(p);
      capacity_ = reserve;
      return;
    }
    require(reserve / 2 >= kSmallestReserve, "arena: must be able to reserve addresses, got no range of ", reserve,
            " bytes");
  }
}

Arena::~Arena() { munmap(base_, static_cast<size_t>(capacity_)); }

void Arena::commit(int64_t end) {
  const int64_t target = std::min(round_up(end, kCommitStep), capacity_);
  require(end <= capacity_, "arena: must stay within its ", capacity_, " bytes, got a need of ", end);
  char* from = base_ + committed_;
  const auto length = static_cast<size_t>(target - committed_);
  require(mprotect(from, length, PROT_READ | PROT_WRITE) == 0,
          "arena: must fit into this machine's memory, got a need of ", end, " bytes");
  madvise(from, length, MADV_HUGEPAGE);  // best effort
  committed_ = target;
}

Tensor Arena::alloc(Shape shape, DType dtype) {
  int64_t bytes = size_of(dtype);
  for (int i = 0; i < shape.rank; ++i) {
    require(shape[i] >= 0 && !__builtin_mul_overflow(bytes, shape[i], &bytes),
            "arena: a tensor's size must fit into 64 bits, got dimension ", shape[i]);
  }
  require(bytes <= capacity_ - used_ - kAlignment, "arena: must stay within its ", capacity_, " bytes, got a need of ",
          used_, " + ", bytes);
  // Never an empty range: a tensor without elements is still present.
  const int64_t end = used_ + std::max(round_up(bytes, kAlignment), kAlignment);
  if (end > committed_) commit(end);
  char* p = base_ + used_;
  used_ = end;
  peak_ = std::max(peak_, used_);
  if (poison_) std::memset(p, 0xff, static_cast<size_t>(bytes));
  return {p, dtype, shape};
}

}  // namespace elapid
