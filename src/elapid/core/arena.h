#pragma once

// Arena: a bump allocator for activations and scratch. Memory is reserved as addresses once and committed page by page
// on first use, so tensors never move, growing costs nothing but page faults, and a repeated step finds the same
// addresses (which graph capture needs). Not thread-safe: one arena per Context.

#include "elapid/core/reservation.h"
#include "elapid/core/tensor.h"

#include <cstdint>

namespace elapid {

class Arena {
 public:
  // Reserves `capacity` bytes of addresses, no memory. On a device, what is released must not be handed out to another
  // of its streams before the kernels that use it are done.
  explicit Arena(int64_t capacity = kDefaultCapacity, Device device = {});
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // A dense tensor with undefined contents, 64-byte aligned. An Error when the capacity is exceeded or the machine has
  // no memory left.
  Tensor alloc(Shape shape, DType dtype);

  [[nodiscard]] int64_t used() const { return used_; }
  [[nodiscard]] int64_t peak() const { return peak_; }

  // Fills memory with NaN when it is handed out: tests find kernels that read what nobody wrote. `stream` orders that
  // with kernels on a device.
  void set_poison(bool on, void* stream = nullptr) {
    poison_ = on;
    poison_stream_ = stream;
  }

  // Everything allocated in a scope is released at its end.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), mark_(arena.used_) {}
    ~Scope() { arena_.used_ = mark_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    int64_t mark_;
  };

  static constexpr int64_t kDefaultCapacity = int64_t{1} << 40;

 private:
  void commit(int64_t end);
  void poison(void* p, int64_t bytes) const;

  Device device_;
  Reservation memory_;
  int64_t committed_ = 0, used_ = 0, peak_ = 0;
  bool poison_ = false;
  void* poison_stream_ = nullptr;
};

}  // namespace elapid
