#pragma once

// StatePool: memory for the states of n sequences; Slot: a lease on one of them, by RAII.

#include "elapid/core/batch.h"
#include "elapid/core/buffer.h"
#include "elapid/core/tensor.h"
#include "elapid/state/pages.h"
#include "elapid/state/spec.h"
#include "elapid/state/state.h"

#include <memory>
#include <span>
#include <vector>

namespace elapid {

class StatePool;

class Slot {
 public:
  Slot() = default;
  ~Slot();
  Slot(Slot&& other) noexcept;
  Slot& operator=(Slot&& other) noexcept;

  // What Batch::slots holds.
  [[nodiscard]] int64_t index() const { return index_; }

 private:
  friend class StatePool;
  Slot(StatePool* pool, int64_t index) : pool_(pool), index_(index) {}
  StatePool* pool_ = nullptr;
  int64_t index_ = kNoSlot;
};

// Must outlive its slots. On a device its memory is there; `stream` orders what it does with the kernels that run.
class StatePool {
 public:
  // Recurrences' states are held in `recurrent`, f32 or bf16; in snapshots all are float32.
  StatePool(std::shared_ptr<const StateSpec> spec, int64_t slots, DType recurrent = DType::f32, Device device = {},
            void* stream = nullptr);
  StatePool(const StatePool&) = delete;
  StatePool& operator=(const StatePool&) = delete;

  // A slot of no tokens, zeroed; an Error when all are taken.
  Slot acquire();
  // A copy of one sequence's memory together with the ids it belongs to.
  [[nodiscard]] State save(const Slot& slot, std::span<const TokenId> tokens,
                           std::span<const TokenId> pending = {}) const;
  // An Error when the state belongs to another model.
  void load(const Slot& slot, const State& state);
  // A second slot with the same contents. What is kept per token is shared until one of them adds to it.
  Slot fork(const Slot& slot);

  // Writes a part of a slot's memory, for states that come from elsewhere: all of a fixed entry, of an entry per token
  // one of the slot's tokens.
  void write(int64_t slot, int64_t entry, std::span<const float> values);
  void write_token(int64_t slot, int64_t entry, int64_t token, std::span<const float> values);

  // Tokens that a slot has consumed, hence the position of its next one.
  [[nodiscard]] int64_t length(int64_t slot) const { return lengths_[checked(slot)]; }
  // A call that feeds `tokens` more to a slot: extend() before it, so that there are pages to write them to which no
  // other slot shares; advance() after it.
  void extend(int64_t slot, int64_t tokens) { pages_.extend(slot, length(slot), tokens); }
  void advance(int64_t slot, int64_t tokens) { lengths_[checked(slot)] += tokens; }

  // Entry i of the spec for all slots. Fixed: [slots, shape…] f32 (or as asked), indexed by Batch::slots. Per token:
  // [pages, kPageTokens, elements a token] f32, indexed by page_table().
  [[nodiscard]] Tensor entry(int64_t i) const { return entries_.at(static_cast<size_t>(i)); }
  // [slots, most pages] i32: which page holds tokens 64 p … 64 p + 63 of a slot. Empty without per-token entries.
  [[nodiscard]] Tensor page_table() const { return pages_.table(); }
  // Bytes that one sequence takes whatever its length.
  [[nodiscard]] int64_t bytes_per_sequence() const;
  // On a device, a copy of it that kernels read; else empty.
  [[nodiscard]] Tensor uploaded_table() const { return pages_.uploaded_table(); }
  [[nodiscard]] int64_t pages_in_use() const { return pages_.in_use(); }
  [[nodiscard]] int64_t capacity() const { return static_cast<int64_t>(taken_.size()); }
  [[nodiscard]] int64_t available() const;

 private:
  friend class Slot;
  void release(int64_t index) noexcept;
  [[nodiscard]] size_t checked(int64_t slot) const;
  // f(entry, index in the spec), in the order of a State.
  template <class F>
  void in_order(const F& f) const {
    for (const size_t i : order_) f(spec_->entries[i], i);
  }

  void copy(void* to, const void* from, int64_t bytes) const { copy_between(device_, stream_, to, from, bytes); }
  void read_row(float* to, const Tensor& row) const;
  void write_row(const Tensor& row, const float* from) const;

  std::shared_ptr<const StateSpec> spec_;
  Device device_;
  void* stream_;
  std::vector<size_t> order_;
  Buffer memory_;  // of the fixed entries
  Pages pages_;    // of the others
  std::vector<Tensor> entries_;
  std::vector<bool> taken_;
  std::vector<int64_t> lengths_;
};

}  // namespace elapid
