#pragma once

// Reservation: a range of addresses without memory behind it. Memory comes when a part is committed and touched, so
// what grows inside a reservation never moves and is never copied.

#include <cstdint>

namespace elapid {

class Reservation {
 public:
  // What bounds of parts are rounded to: a huge page.
  static constexpr int64_t kStep = int64_t{2} << 20;

  Reservation() = default;
  // `wanted` bytes of addresses, rounded up to kStep. An address-space limit (ulimit -v) may refuse a large reservation
  // although little of it would ever be used: then the largest of its halves that the limit allows, but not fewer than
  // `least` bytes, which is an Error that begins with `what`.
  Reservation(int64_t wanted, int64_t least, const char* what);
  ~Reservation();
  Reservation(Reservation&& other) noexcept;
  Reservation& operator=(Reservation&& other) noexcept;

  [[nodiscard]] char* data() const { return data_; }
  [[nodiscard]] int64_t bytes() const { return bytes_; }

  // Makes bytes [begin, end), multiples of kStep, usable: zero until written. False when the machine refuses.
  [[nodiscard]] bool commit(int64_t begin, int64_t end, bool huge_pages) const;
  // Returns the memory of whole pages within [begin, end) to the machine; they stay usable and are zero again.
  void give_back(int64_t begin, int64_t end) const;

 private:
  char* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace elapid
