#pragma once

// Hash: tells contents apart and finds damage. Not cryptographic.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iomanip>
#include <sstream>
#include <string>

namespace elapid {

// Four independent multiply-rotate lanes over 32 bytes a round: memory speed, and every bit reaches the result.
class Hash {
 public:
  void add(const void* data, size_t bytes) {
    announce(bytes);
    add_piece(data, bytes);
  }
  void add(const std::string& text) { add(text.data(), text.size()); }

  // The same in pieces: first how many bytes there are in all, then pieces that are multiples of kPiece, and last one
  // that is not, or nothing.
  static constexpr size_t kPiece = 32;
  void announce(size_t bytes) {
    mix(0, bytes);
    left_ = bytes;
  }
  void add_piece(const void* data, size_t bytes) {
    const auto* p = static_cast<const unsigned char*>(data);
    left_ -= bytes;
    for (; bytes >= kPiece; p += kPiece, bytes -= kPiece) {
      for (size_t lane = 0; lane < 4; ++lane) {
        uint64_t word;
        std::memcpy(&word, p + lane * 8, 8);
        mix(lane, word);
      }
    }
    if (left_ > 0) return;
    unsigned char rest[kPiece] = {};
    if (bytes > 0) std::memcpy(rest, p, bytes);
    for (size_t lane = 0; lane < 4; ++lane) {
      uint64_t word;
      std::memcpy(&word, rest + lane * 8, 8);
      mix(lane, word);
    }
  }

  [[nodiscard]] std::string hex() const {
    const uint64_t high = finish(lanes_[0] ^ std::rotl(lanes_[1], 17)),
                   low = finish(lanes_[2] ^ std::rotl(lanes_[3], 29));
    std::ostringstream out;
    out << std::hex << std::setfill('0') << std::setw(16) << finish(high + 3 * low) << std::setw(16)
        << finish(low + 5 * high);
    return out.str();
  }

 private:
  void mix(size_t lane, uint64_t word) {
    lanes_[lane] = std::rotl((lanes_[lane] ^ word) * 0x9E3779B97F4A7C15u, 31) * 0xD6E8FEB86659FD93u;
  }
  // The finalizer of SplitMix64 (Steele, Lea & Flood 2014).
  static uint64_t finish(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }
  uint64_t lanes_[4] = {1, 2, 3, 4};
  size_t left_ = 0;
};

}  // namespace elapid
