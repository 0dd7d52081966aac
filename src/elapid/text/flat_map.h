#pragma once

// An insert-only hash map from 64-bit keys to small values: open addressing, one cache line a look-up as a rule. The
// key ~0 is reserved.

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace elapid {

template <class Value>
class FlatMap {
 public:
  explicit FlatMap(size_t expected = 0) { rehash(slots_for(expected)); }

  [[nodiscard]] size_t size() const { return size_; }

  [[nodiscard]] const Value* find(uint64_t key) const {
    for (size_t slot = home(key);; slot = (slot + 1) & mask_) {
      if (slots_[slot].key == key) return &slots_[slot].value;
      if (slots_[slot].key == kFree) return nullptr;
    }
  }

  // Replaces the value of a key that is there already.
  void set(uint64_t key, const Value& value) {
    if (2 * (size_ + 1) > slots_.size()) rehash(2 * slots_.size());
    size_t slot = home(key);
    while (slots_[slot].key != kFree && slots_[slot].key != key) slot = (slot + 1) & mask_;
    size_ += slots_[slot].key == kFree;
    slots_[slot] = {key, value};
  }

 private:
  static constexpr uint64_t kFree = ~uint64_t{0};
  struct Slot {
    uint64_t key = kFree;
    Value value{};
  };

  static size_t slots_for(size_t expected) {
    size_t slots = 16;
    while (slots < 2 * expected) slots *= 2;
    return slots;
  }

  [[nodiscard]] size_t home(uint64_t key) const {
    const uint64_t mixed = (key ^ (key >> 29)) * 0x9E3779B97F4A7C15u;
    return static_cast<size_t>(mixed >> 20) & mask_;
  }

  void rehash(size_t slots) {
    std::vector<Slot> old = std::exchange(slots_, std::vector<Slot>(slots));
    mask_ = slots - 1;
    for (const Slot& from : old) {
      if (from.key == kFree) continue;
      size_t slot = home(from.key);
      while (slots_[slot].key != kFree) slot = (slot + 1) & mask_;
      slots_[slot] = from;
    }
  }

  std::vector<Slot> slots_;
  size_t mask_ = 0;
  size_t size_ = 0;
};

}  // namespace elapid
