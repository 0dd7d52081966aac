#include "elapid/state/pages.h"

#include "elapid/core/error.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace elapid {
namespace {

constexpr int64_t kReserve = int64_t{1} << 40;     // addresses, in bytes
constexpr int64_t kKeptFree = int64_t{256} << 20;  // memory of free pages beyond which the machine gets it back
constexpr int64_t kStep = Reservation::kStep;

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace

Pages::Pages(const StateSpec& spec, int64_t slots, Device device, void* stream) : device_(device), stream_(stream) {
  memory_.resize(spec.entries.size());
  committed_.assign(spec.entries.size(), 0);
  held_.assign(static_cast<size_t>(slots), 0);
  int64_t entries = 0;
  for (const StateEntry& e : spec.entries) {
    if (!e.per_token()) continue;
    require(e.shape.size() >= 1 && e.shape.size() < int64_t{1} << 32,
            "state pool: a token must have 1 to 2³² elements, got ", e.shape.size(), " of ", e.kind);
    page_bytes_ += kPageTokens * e.bytes();
    ++entries;
  }
  if (entries == 0) return;

  const int64_t wanted = std::min(slots * kMostPages, kReserve / page_bytes_), slack = entries * kStep;
  reserved_ = Reservation(wanted * page_bytes_ + slack, page_bytes_ + slack, "state pool", device);
  capacity_ = std::min<int64_t>((reserved_.bytes() - slack) / page_bytes_, std::numeric_limits<int32_t>::max());
  char* at = reserved_.data();
  for (size_t i = 0; i < memory_.size(); ++i) {
    const StateEntry& e = spec.entries[i];
    if (!e.per_token()) continue;
    memory_[i] = Tensor(at, DType::f32, {capacity_, kPageTokens, e.shape.size()});
    at += round_up(memory_[i].bytes(), kStep);
  }
  table_memory_ =
      Reservation(slots * kMostPages * size_of(DType::i32), slots * kMostPages * size_of(DType::i32), "state pool");
  require(table_memory_.commit(0, table_memory_.bytes(), false),
          "state pool: the page table must fit into this machine's memory, got ", table_memory_.bytes(), " bytes");
  table_ = Tensor(table_memory_.data(), DType::i32, {slots, kMostPages});
  if (on_cuda(device_)) {
    uploaded_memory_ = Buffer(table_.bytes(), device_);
    uploaded_table_ = Tensor(uploaded_memory_.data(), DType::i32, table_.shape);
  }
}

// Entries [first, end) of a slot's row, which have changed.
void Pages::upload(int64_t slot, int64_t first, int64_t end) const {
  if constexpr (kWithCuda) {
    if (!uploaded_table_ || first >= end) return;
    copy_async(uploaded_table_.ptr<int32_t>() + slot * kMostPages + first, row(slot) + first,
               (end - first) * size_of(DType::i32), stream_);
  }
}

int32_t Pages::take() {
  for (std::vector<int32_t>* list : {&free_, &given_back_}) {
    if (list->empty()) continue;
    const int32_t page = list->back();
    list->pop_back();
    references_[static_cast<size_t>(page)] = 1;
    return page;
  }
  require(used_ < capacity_, "state pool: must have a free page, got all ", capacity_, " taken");
  for (size_t i = 0; i < memory_.size(); ++i) {
    if (!memory_[i]) continue;
    const int64_t end = (used_ + 1) * memory_[i].strides[0] * size_of(DType::f32);
    if (end <= committed_[i]) continue;
    // Huge pages from the second step on: a short conversation should not take one for every entry.
    const int64_t begin = static_cast<char*>(memory_[i].data) - reserved_.data();
    const int64_t target = round_up(end, kStep);
    require(reserved_.commit(begin + committed_[i], begin + target, committed_[i] > 0),
            "state pool: pages must fit into this machine's memory, got a need of ", used_ + 1, " of ", page_bytes_,
            " bytes");
    committed_[i] = target;
  }
  if (references_.size() == references_.capacity()) {
    // All three at once, so that giving pages back never allocates.
    const size_t room = std::max<size_t>(1024, 2 * references_.capacity());
    free_.reserve(room);
    given_back_.reserve(room);
    references_.reserve(room);
  }
  references_.push_back(1);
  return static_cast<int32_t>(used_++);
}

void Pages::drop(int32_t page) noexcept {
  if (--references_[static_cast<size_t>(page)] > 0) return;
  if (static_cast<int64_t>(free_.size()) * page_bytes_ < kKeptFree) {
    free_.push_back(page);
    return;
  }
  for (const Tensor& memory : memory_) {
    if (!memory) continue;
    const int64_t bytes = memory.strides[0] * size_of(DType::f32);
    const int64_t begin = static_cast<char*>(memory.data) - reserved_.data() + page * bytes;
    reserved_.give_back(begin, begin + bytes);
  }
  given_back_.push_back(page);
}

void Pages::extend(int64_t slot, int64_t length, int64_t tokens) {
  if (!table_ || tokens == 0) return;
  const int64_t full = length / kPageTokens, partial = length % kPageTokens;
  require(tokens <= kMostPages * kPageTokens - length, "state pool: a sequence must have at most ",
          kMostPages * kPageTokens, " tokens, got ", length, " and ", tokens, " more");
  int32_t* pages = row(slot);
  if (partial > 0 && references_[static_cast<size_t>(pages[full])] > 1) {
    const int32_t own = take();
    for (const Tensor& memory : memory_) {
      if (!memory) continue;
      copy_between(device_, stream_, memory.ptr<float>() + own * memory.strides[0],
                   memory.ptr<float>() + pages[full] * memory.strides[0],
                   partial * memory.strides[1] * size_of(DType::f32));
    }
    drop(pages[full]);
    pages[full] = own;
    upload(slot, full, full + 1);
  }
  int64_t& held = held_[static_cast<size_t>(slot)];
  while (held * kPageTokens < length + tokens) {
    pages[held] = take();
    ++held;
    upload(slot, held - 1, held);
  }
}

void Pages::share(int64_t from, int64_t to, int64_t length) {
  if (!table_) return;
  const int64_t count = (length + kPageTokens - 1) / kPageTokens;
  for (int64_t i = 0; i < count; ++i) {
    row(to)[i] = row(from)[i];
    ++references_[static_cast<size_t>(row(from)[i])];
  }
  held_[static_cast<size_t>(to)] = count;
  upload(to, 0, count);
}

void Pages::release(int64_t slot) noexcept {
  if (!table_) return;
  int64_t& held = held_[static_cast<size_t>(slot)];
  for (int64_t i = 0; i < held; ++i) drop(row(slot)[i]);
  held = 0;
}

}  // namespace elapid
