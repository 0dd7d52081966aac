#pragma once

// Tile: a block of a matrix product in registers, and the loop that covers a matrix with them. Every element is a chain
// of fused multiply-adds in order of k, whatever tile it falls into. Only *_cpu.cc files include this header.

#include "elapid/cpu/simd.h"

namespace elapid {
namespace {

#if defined(ELAPID_FEWER_TILES)  // sanitizers: the same code in fewer instances
inline constexpr int kTileRows = 2, kTileVectors = 2;
#elif defined(ELAPID_ISA_AVX512)
inline constexpr int kTileRows = 6, kTileVectors = 4;  // 24 accumulators
#elif defined(ELAPID_ISA_AVX2)
inline constexpr int kTileRows = 6, kTileVectors = 1;
#else
inline constexpr int kTileRows = 2, kTileVectors = 1;
#endif

// The a-side of a product: element (row, k).
struct Left {
  const float* data;
  int64_t row_stride, k_stride;
};
// The b-side: row k holds vectors of neighbouring columns.
struct Right {
  const float* data;
  int64_t k_stride;
};

template <int rows, int vectors>
struct Tile {
  F32 v[rows][vectors];

  ELAPID_INLINE void clear() {
    static_for<rows>([&](auto r)
                         ELAPID_LAMBDA { static_for<vectors>([&](auto c) ELAPID_LAMBDA { v[r][c] = zero(); }); });
  }
  // v += a · b over k in [0, depth)
  ELAPID_INLINE void multiply(const Left& a, const Right& b, int64_t depth) {
    for (int64_t k = 0; k < depth; ++k) {
      F32 right[vectors];
      static_for<vectors>([&](auto c) ELAPID_LAMBDA { right[c] = load(b.data + k * b.k_stride + c * kLanes); });
      static_for<rows>([&](auto r) ELAPID_LAMBDA {
        const F32 left = broadcast(a.data[r * a.row_stride + k * a.k_stride]);
        static_for<vectors>([&](auto c) ELAPID_LAMBDA { v[r][c] = fma(left, right[c], v[r][c]); });
      });
    }
  }
};

// Covers [0, rows) × [0, columns) with tiles: f(row, column, Constant rows, Constant vectors).
// `columns` is a multiple of 16.
template <class F>
ELAPID_INLINE void for_tiles(int64_t rows, int64_t columns, const F& f) {
  for (int64_t row = 0; row < rows; row += kTileRows) {
    const int64_t height = rows - row < kTileRows ? rows - row : kTileRows;
    for (int64_t column = 0; column < columns;) {
      const int64_t left = (columns - column) / kLanes;
      const bool wide = left >= kTileVectors;
      static_for<kTileRows>([&](auto h) ELAPID_LAMBDA {
        if (height == h + 1) {
          if (wide) {
            f(row, column, Constant<h + 1>{}, Constant<kTileVectors>{});
          } else {
            f(row, column, Constant<h + 1>{}, Constant<1>{});
          }
        }
      });
      column += wide ? kTileVectors * kLanes : kLanes;
    }
  }
}

}  // namespace
}  // namespace elapid
