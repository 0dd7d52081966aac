#pragma once

// AMX tiles. Only *_amx.cc files include this header; as simd.h, all of it has internal linkage.

#include "elapid/cpu/simd.h"

namespace elapid {
namespace {

// The compiler does not know that the intrinsics of tiles read memory: what was written before them must be there.
ELAPID_INLINE void settle_memory() { asm volatile("" ::: "memory"); }

// Rows of 64 bytes for all eight tiles, on this thread, while it lives: sixteen, or `few` in tiles 0 … 5, which leaves
// 6 and 7 to the columns of products of so few rows.
class Tiles {
 public:
  explicit Tiles(int64_t few = 16) {
    const auto n = static_cast<uint8_t>(few);
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16];
    } config{.rows = {n, n, n, n, n, n, 16, 16}};
    asm volatile("" ::"m"(config));  // all of it, where the intrinsic admits to eight bytes
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// Operands of bf16 products. Rows come as tiles [depth / 32][16 rows][32 of depth]; what they meet comes as blocks of
// sixteen columns, [depth / 32][16 pairs of depth][16 columns][2].
inline constexpr int64_t kAmxRows = 16, kAmxDepth = 32, kAmxElements = kAmxRows * kAmxDepth;

// Two hyperthreads share a core's physical tiles: beside a busy sibling, eight live ones leave hardly any to rename,
// and loads and products run one after another, at a quarter of the speed. A zeroed tile takes none: operands are
// zeroed as soon as they have been used.

ELAPID_INLINE void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// Adds rows · columns of row_tiles × blocks tiles, at most four, over `steps` times 32 of depth, to tiles 0 … 3. The
// next row tile is x_tile elements on, the next block w_block. each() runs once a step.
template <int row_tiles, int blocks, class Each>
ELAPID_INLINE void multiply_tiles(const BFloat16* x, int64_t x_tile, const BFloat16* w, int64_t w_block, int64_t steps,
                                  const Each& each) {
  settle_memory();
  for (int64_t k = 0; k < steps; ++k, x += kAmxElements, w += kAmxElements) {
    each();
    if constexpr (row_tiles == 1 && blocks == 4) {
      _tile_loadd(4, x, 64);
      _tile_loadd(5, w, 64);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(6, w + w_block, 64);
      _tile_dpbf16ps(1, 4, 6);
      _tile_loadd(5, w + 2 * w_block, 64);
      _tile_dpbf16ps(2, 4, 5);
      _tile_loadd(6, w + 3 * w_block, 64);
      _tile_dpbf16ps(3, 4, 6);
      _tile_zero(4);
      _tile_zero(5);
    } else {
      static_assert(row_tiles <= 2 && blocks <= 2);
      _tile_loadd(6, w, 64);
      _tile_loadd(4, x, 64);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (row_tiles == 2) {
        _tile_loadd(5, x + x_tile, 64);
        _tile_dpbf16ps(2, 5, 6);
      }
      _tile_zero(6);
      if constexpr (blocks == 2) {
        _tile_loadd(6, w + w_block, 64);
        _tile_dpbf16ps(1, 4, 6);
        if constexpr (row_tiles == 2) _tile_dpbf16ps(3, 5, 6);
      }
      _tile_zero(4);
      if constexpr (row_tiles == 2) _tile_zero(5);
    }
    _tile_zero(6);
  }
}

// What multiply_tiles() left, to rows `stride` floats apart.
template <int row_tiles, int blocks>
ELAPID_INLINE void store_tiles(float* to, int64_t stride) {
  _tile_stored(0, to, stride * 4);
  if constexpr (blocks >= 2) _tile_stored(1, to + 16, stride * 4);
  if constexpr (blocks == 4) {
    _tile_stored(2, to + 32, stride * 4);
    _tile_stored(3, to + 48, stride * 4);
  }
  if constexpr (row_tiles == 2) {
    _tile_stored(2, to + kAmxRows * stride, stride * 4);
    if constexpr (blocks == 2) _tile_stored(3, to + kAmxRows * stride + 16, stride * 4);
  }
  settle_memory();
}

// Sixteen pairs (even[i], odd[i]) of bf16: a row of a block.
ELAPID_INLINE __m512i bf16_pairs(__m512 even, __m512 odd) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even)));
}

// Rows of sixteen 32-bit words → columns.
ELAPID_INLINE void transpose_words(__m512i (&row)[16]) {
  __m512i t[16];
  static_for<8>([&](auto i) ELAPID_LAMBDA {
    t[2 * i] = _mm512_unpacklo_epi32(row[2 * i], row[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(row[2 * i], row[2 * i + 1]);
  });
  static_for<4>([&](auto i) ELAPID_LAMBDA {
    row[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    row[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    row[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    row[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  });
  // row[4 q + c]: column c of each quarter, rows 4 q … 4 q + 3
  static_for<4>([&](auto c) ELAPID_LAMBDA {
    t[c] = _mm512_shuffle_i32x4(row[c], row[4 + c], 0x88);
    t[4 + c] = _mm512_shuffle_i32x4(row[c], row[4 + c], 0xdd);
    t[8 + c] = _mm512_shuffle_i32x4(row[8 + c], row[12 + c], 0x88);
    t[12 + c] = _mm512_shuffle_i32x4(row[8 + c], row[12 + c], 0xdd);
  });
  static_for<4>([&](auto c) ELAPID_LAMBDA {
    row[c] = _mm512_shuffle_i32x4(t[c], t[8 + c], 0x88);
    row[8 + c] = _mm512_shuffle_i32x4(t[c], t[8 + c], 0xdd);
    row[4 + c] = _mm512_shuffle_i32x4(t[4 + c], t[12 + c], 0x88);
    row[12 + c] = _mm512_shuffle_i32x4(t[4 + c], t[12 + c], 0xdd);
  });
}

}  // namespace
}  // namespace elapid
