#pragma once

// Pages: the memory of a pool's per-token entries, in pages of kPageTokens tokens. All entries have the same number of
// tokens, so one page table serves them all: page p is row p of every entry. Addresses are reserved once and get memory
// page by page, hence nothing moves and nothing is copied when a sequence grows. Forks share pages by reference count;
// a shared page that is to be written is copied first.
//
// On a device, entries lie in its memory, and so does a copy of the page table that kernels read; the table itself
// stays on the host. Copies are ordered by the pool's stream.

#include "elapid/core/batch.h"
#include "elapid/core/buffer.h"
#include "elapid/core/reservation.h"
#include "elapid/state/spec.h"

#include <vector>

namespace elapid {

class Pages {
 public:
  // The longest sequence, in pages: what a row of the table has room for (4 million tokens).
  static constexpr int64_t kMostPages = int64_t{1} << 16;

  // For those entries of the spec that are per token. Without any, nothing is reserved and every call does nothing.
  Pages(const StateSpec& spec, int64_t slots, Device device = {}, void* stream = nullptr);

  // Row p holds page p: [pages, kPageTokens, elements a token] f32. `entry` is an index of the spec.
  [[nodiscard]] Tensor memory(int64_t entry) const { return memory_[static_cast<size_t>(entry)]; }
  // [slots, kMostPages] i32, empty without per-token entries.
  [[nodiscard]] Tensor table() const { return table_; }
  // The copy on a device, or empty.
  [[nodiscard]] Tensor uploaded_table() const { return uploaded_table_; }

  // The slot, which has `length` tokens, gets pages of its own for `tokens` more. An Error, which leaves what the slot
  // had, when there are none.
  void extend(int64_t slot, int64_t length, int64_t tokens);
  // The slot `to`, which has no pages, shares those of the first `length` tokens of `from`.
  void share(int64_t from, int64_t to, int64_t length);
  // The slot has no pages any more. Allocates nothing.
  void release(int64_t slot) noexcept;

  // Calls f(first token, count, where they are) for each page of an entry's first `length` tokens.
  template <class F>
  void for_each(int64_t slot, int64_t entry, int64_t length, const F& f) const {
    const Tensor& memory = memory_[static_cast<size_t>(entry)];
    for (int64_t first = 0; first < length; first += kPageTokens) {
      const int64_t count = length - first < kPageTokens ? length - first : kPageTokens;
      f(first, count, memory.ptr<float>() + row(slot)[first / kPageTokens] * memory.strides[0]);
    }
  }

  // Of all sequences together; shared ones count once.
  [[nodiscard]] int64_t in_use() const { return used_ - static_cast<int64_t>(free_.size() + given_back_.size()); }

 private:
  [[nodiscard]] int32_t* row(int64_t slot) const { return table_.ptr<int32_t>() + slot * kMostPages; }
  int32_t take();
  void drop(int32_t page) noexcept;
  void upload(int64_t slot, int64_t first, int64_t end) const;

  int64_t page_bytes_ = 0, capacity_ = 0;
  int64_t used_ = 0;  // pages that were ever taken: [0, used_)
  Device device_;
  void* stream_ = nullptr;
  Reservation reserved_, table_memory_;
  Buffer uploaded_memory_;
  Tensor table_, uploaded_table_;
  std::vector<Tensor> memory_;              // by entry of the spec; empty tensors for fixed ones
  std::vector<int64_t> committed_;          // bytes, likewise
  std::vector<int64_t> held_;               // pages of each slot
  std::vector<int32_t> references_;         // of each page
  std::vector<int32_t> free_, given_back_;  // with memory, and without
};

}  // namespace elapid
