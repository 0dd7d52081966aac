#pragma once

// Reservation: a range of addresses without memory behind it. Memory comes when a part is committed and touched, so
// what grows inside a reservation never moves and is never copied. On CUDA, the device's addresses and memory.

#include "elapid/core/device.h"

#include <cstdint>
#include <vector>

namespace elapid {

class Reservation {
 public:
  // What bounds of parts are rounded to: a huge page.
  static constexpr int64_t kStep = int64_t{2} << 20;

  Reservation() = default;
  // `wanted` bytes of addresses, rounded up to kStep. An address-space limit (ulimit -v) may refuse a large reservation
  // although little of it would ever be used: then the largest of its halves that the limit allows, but not fewer than
  // `least` bytes, which is an Error that begins with `what`.
  Reservation(int64_t wanted, int64_t least, const char* what, Device device = {});
  ~Reservation();
  Reservation(Reservation&& other) noexcept;
  Reservation& operator=(Reservation&& other) noexcept;

  [[nodiscard]] char* data() const { return data_; }
  [[nodiscard]] int64_t bytes() const { return bytes_; }

  // Makes bytes [begin, end), multiples of kStep, usable: zero until written on the host, undefined on CUDA. No byte
  // twice. False when the machine refuses.
  [[nodiscard]] bool commit(int64_t begin, int64_t end, bool huge_pages);
  // Returns the memory of whole pages within [begin, end) to the machine; they stay usable and are zero again. On CUDA
  // memory stays: its pages are larger than what callers give back.
  void give_back(int64_t begin, int64_t end) const;

 private:
  struct Part {
    int64_t begin, end;
  };
  char* data_ = nullptr;
  int64_t bytes_ = 0;
  Device device_;
  std::vector<Part> mapped_;  // on CUDA: what was committed, as it was
};

}  // namespace elapid
