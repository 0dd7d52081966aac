#pragma once

// AMX tiles. Only *_amx.cc files include this header; as simd.h, all of it has internal linkage.

#include "elapid/cpu/simd.h"

namespace elapid {
namespace {

// The compiler does not know that the intrinsics of tiles read memory: what was written before them must be there.
ELAPID_INLINE void settle_memory() { asm volatile("" ::: "memory"); }

// Sixteen rows of 64 bytes for all eight tiles, on this thread, while it lives.
class Tiles {
 public:
  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    asm volatile("" ::"m"(config));  // all of it, where the intrinsic admits to eight bytes
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

}  // namespace
}  // namespace elapid
