#pragma once

// Products in float32 in registers. Only *_cpu.cc files include this header; all of it has internal linkage.
//
// A tile of `rows` × 16·`blocks` outputs lives in registers while k runs: each step loads two inputs' weights once and
// multiplies them with every row. Few rows take more blocks, so that enough independent accumulators hide the latency
// of fma (and enough streams are open to draw the memory's bandwidth); many rows take more rows, so that weights are
// loaded and widened rarely.

#include "elapid/cpu/simd.h"
#include "elapid/ops/matmul/matmul.h"
#include "elapid/ops/matmul/matmul_cpu.h"

namespace elapid {
namespace {

#if defined(ELAPID_ISA_AVX512)
constexpr int kMostRows = 12;  // 12 × 2 accumulators, 2 × 2 weights, 1 input: 29 of 32 registers
constexpr int blocks_for(int rows) { return rows <= 3 ? 8 : rows <= 6 ? 4 : 2; }
#elif defined(ELAPID_ISA_AVX2)
constexpr int kMostRows = 4;  // an F32 is two of 16 registers
constexpr int blocks_for(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
#else
constexpr int kMostRows = 2;  // an F32 is four of 16 registers
constexpr int blocks_for(int) { return 1; }
#endif

// Heights of tiles, largest first: few enough to compile quickly, close enough that few rows are taken by a low tile.
// Every other number of rows is a sum of these.
#if defined(ELAPID_FEWER_TILES)  // sanitizers: the same code in fewer instances, which compile in minutes less
constexpr int kHeights[] = {2, 1};
#else
constexpr int kHeights[] = {12, 8, 6, 4, 3, 2, 1};
#endif

// Bytes ahead in each of the streams of weights that few rows read.
constexpr int64_t kAhead = 4096;

// How the sum of a stretch of `inputs` products joins those before it.
struct Added {
  static constexpr int64_t inputs = kAccumulate;
  ELAPID_INLINE F32 operator()(const F32& total, const F32& sum, int64_t /*stretch*/) const { return total + sum; }
};

template <int rows, int blocks, class T, class Join>
void tile(const MatmulForward& a, int64_t row, int64_t block, const Join& join) {
  const int64_t in = a.x.cols(), depth = packed_depth(in), x_stride = a.x.row_stride();
  const float* x = a.x.row<float>(row);
  const T* w = a.weight.ptr<T>() + block * kPackBlock * depth;
  F32 total[rows][blocks];
  static_for<rows>([&](auto r)
                       ELAPID_LAMBDA { static_for<blocks>([&](auto b) ELAPID_LAMBDA { total[r][b] = zero(); }); });
  for (int64_t k0 = 0; k0 < in; k0 += Join::inputs) {
    const int64_t k1 = k0 + Join::inputs < in ? k0 + Join::inputs : in;
    F32 acc[rows][blocks];
    static_for<rows>([&](auto r)
                         ELAPID_LAMBDA { static_for<blocks>([&](auto b) ELAPID_LAMBDA { acc[r][b] = zero(); }); });
    const auto step = [&](int64_t k, const F32(&weights)[blocks]) ELAPID_LAMBDA {
      static_for<rows>([&](auto r) ELAPID_LAMBDA {
        const F32 xk = broadcast(x[r * x_stride + k]);
        static_for<blocks>([&](auto b) ELAPID_LAMBDA { acc[r][b] = fma(xk, weights[b], acc[r][b]); });
      });
    };
    for (int64_t k = k0; k < k1; k += 2) {
      F32 even[blocks], odd[blocks];
      static_for<blocks>([&](auto b) ELAPID_LAMBDA {
        const T* from = w + (b * depth + k) * kPackBlock;
        // One row uses weights up faster than a core's own prefetchers ask for them.
        if constexpr (rows == 1) _mm_prefetch(reinterpret_cast<const char*>(from) + kAhead, _MM_HINT_T0);
        load_pair(from, even[b], odd[b]);
      });
      step(k, even);
      if (k + 1 < k1) step(k + 1, odd);
    }
    static_for<rows>([&](auto r) ELAPID_LAMBDA {
      static_for<blocks>([&](auto b) ELAPID_LAMBDA { total[r][b] = join(total[r][b], acc[r][b], k0 / Join::inputs); });
    });
  }
  static_for<blocks>([&](auto b) ELAPID_LAMBDA {
    static_for<rows>([&](auto r) ELAPID_LAMBDA { finish_row(a, row + r, block + b, total[r][b]); });
  });
}

template <int rows, class T, class Join>
void tile_row(const MatmulForward& a, int64_t row, int64_t block, int64_t block_end, const Join& join) {
  constexpr int kBlocks = blocks_for(rows);
  for (; block + kBlocks <= block_end; block += kBlocks) tile<rows, kBlocks, T>(a, row, block, join);
  if constexpr (kBlocks > 1) {
    for (; block < block_end; ++block) tile<rows, 1, T>(a, row, block, join);
  }
}

// Rows [row, row_end) × blocks [block, block_end).
template <class T, class Join = Added>
void task(const MatmulForward& a, int64_t row, int64_t row_end, int64_t block, int64_t block_end,
          const Join& join = {}) {
  constexpr int64_t kPanel = blocks_for(kMostRows);
  // Panels outside, rows inside: a panel's weights stay in L1 while all rows pass.
  const int64_t panel = row_end - row > kMostRows ? kPanel : block_end - block;
  for (int64_t b = block; b < block_end; b += panel) {
    const int64_t b_end = b + panel < block_end ? b + panel : block_end;
    int64_t r = row;
    static_for<static_cast<int>(sizeof kHeights / sizeof *kHeights)>([&](auto i) ELAPID_LAMBDA {
      constexpr int kHeight = kHeights[i];
      if constexpr (kHeight <= kMostRows) {
        for (; r + kHeight <= row_end; r += kHeight) tile_row<kHeight, T>(a, r, b, b_end, join);
      }
    });
  }
}

// Rows that one task takes: they stay in L2 while the task's weights pass.
constexpr int64_t kTaskRows = 96;

template <class T>
ELAPID_INLINE Cut cut_of(int64_t rows, int64_t in, int64_t out) {
  Cut c;
  const int64_t blocks = packed_blocks(out), depth = packed_depth(in);
  c.row_tasks = (rows + kTaskRows - 1) / kTaskRows;
  c.task_rows = rows == 0 ? 0 : ((rows + c.row_tasks - 1) / c.row_tasks + kMostRows - 1) / kMostRows * kMostRows;
  // About 128 KiB of weights a task when there are few rows (some 10 µs of memory time), fewer with more rows (some 100
  // µs of arithmetic): short enough that a thread which loses its core delays the others little.
  const int64_t bytes = rows <= kMostRows ? int64_t{128} << 10 : int64_t{48} << 10;
  const int64_t fitting = bytes / (depth * kPackBlock * int64_t{sizeof(T)});
  c.task_blocks = fitting / 8 * 8 + 8;  // whole widest tiles
  c.block_tasks = (blocks + c.task_blocks - 1) / c.task_blocks;
  return c;
}

template <class T>
void task(const MatmulForward& a, const Cut& c, int64_t i) {
  for_task(c, i, a.x.rows(), packed_blocks(a.y.cols()),
           [&](int64_t row, int64_t row_end, int64_t block, int64_t block_end)
               ELAPID_LAMBDA { task<T>(a, row, row_end, block, block_end); });
}

}  // namespace
}  // namespace elapid
