#pragma once

// StatePool: memory for the states of n sequences; Slot: a lease on one of them, by RAII.

#include "elapid/core/batch.h"
#include "elapid/core/buffer.h"
#include "elapid/core/tensor.h"
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

// Must outlive its slots.
class StatePool {
 public:
  StatePool(std::shared_ptr<const StateSpec> spec, int64_t slots);
  StatePool(const StatePool&) = delete;
  StatePool& operator=(const StatePool&) = delete;

  // A zeroed slot; an Error when all are taken.
  Slot acquire();
  // A copy of one sequence's memory together with the ids it belongs to.
  [[nodiscard]] State save(const Slot& slot, std::span<const TokenId> tokens,
                           std::span<const TokenId> pending = {}) const;
  // An Error when the state belongs to another model.
  void load(const Slot& slot, const State& state);
  // A second slot with the same contents.
  Slot fork(const Slot& slot);

  // Entry i of the spec for all slots: [slots, shape…] f32. Kernels index it by Batch::slots.
  [[nodiscard]] Tensor entry(int64_t i) const { return entries_.at(static_cast<size_t>(i)); }
  [[nodiscard]] int64_t capacity() const { return static_cast<int64_t>(taken_.size()); }
  [[nodiscard]] int64_t available() const;

 private:
  friend class Slot;
  void release(int64_t index) { taken_[static_cast<size_t>(index)] = false; }

  std::shared_ptr<const StateSpec> spec_;
  Buffer memory_;
  std::vector<Tensor> entries_;
  std::vector<bool> taken_;
};

}  // namespace elapid
