#include "elapid/cpu/amx.h"
#include "elapid/ops/matmul/grouped_matmul.h"
#include "elapid/ops/matmul/matmul_cpu.h"
#include "elapid/ops/matmul/quantized.h"

// bf16 products in AMX tiles: sixteen rows × 32 inputs times 32 inputs × sixteen outputs. Two tiles of rows meet two of
// weights, so that each is loaded once for two products. The packed order of bf16 weights is that of the tiles already;
// quantized ones are decoded into it, a panel of two blocks at a time, for all rows.

namespace elapid {
namespace {

constexpr int64_t kTileRows = 16, kTileDepth = kPackDepth;
constexpr int64_t kTileSums = kTileRows * kPackBlock;

// So many rows go one register tile high at AVX-512: what bounds them is the memory that the weights come from.
constexpr int64_t kFewRows = 4;

// Bytes of x that a task takes: they stay in L2 while the task's weights pass.
constexpr int64_t kTaskInput = int64_t{1} << 20;

// x in bf16, with the columns that tiles read beyond its own zero.
struct Input {
  const BFloat16* data;
  int64_t depth;

  [[nodiscard]] const BFloat16* row(int64_t r) const { return data + r * depth; }
};

Input rounded(Amx cpu, const Tensor& x, int64_t depth, const Tensor& room) {
  auto* data = static_cast<BFloat16*>(room.data);
  parallel_for(cpu.threads, x.rows(), (int64_t{1} << 15) / depth + 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const float* from = x.row<float>(r);
      for (int64_t c = 0; c < depth; c += kTileDepth) {
        const auto floats = [&](int64_t at)
                                ELAPID_LAMBDA { return load(from + at, at < x.cols() ? x.cols() - at : 0).v[0]; };
        const __m512bh pair = _mm512_cvtne2ps_pbh(floats(c + kLanes), floats(c));
        _mm512_storeu_si512(data + r * depth + c, reinterpret_cast<__m512i>(pair));
      }
    }
  });
  return {data, depth};
}

// Sums over all inputs of row_tiles × blocks tiles, at most four, to sums[row tile][block][16][16].
template <int row_tiles, int blocks>
ELAPID_INLINE void products(const BFloat16* x, const BFloat16* w, int64_t depth, float* sums) {
  const int64_t x_stride = depth * 2, x_tile = kTileRows * depth, w_block = depth * kPackBlock;
  settle_memory();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < depth; k += kTileDepth, x += kTileDepth, w += kTileDepth * kPackBlock) {
    _tile_loadd(4, x, x_stride);
    if constexpr (row_tiles == 1 && blocks == 4) {
      _tile_loadd(5, w, 64);
      _tile_loadd(6, w + w_block, 64);
      _tile_loadd(7, w + 2 * w_block, 64);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(5, w + 3 * w_block, 64);
      _tile_dpbf16ps(1, 4, 6);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 4, 5);
    } else {
      static_assert(row_tiles <= 2 && blocks <= 2);
      for (int64_t i = 0; i < kTileRows; ++i) {  // two tiles ahead
        for (int64_t b = 0; b < blocks; ++b)
          _mm_prefetch(w + b * w_block + (2 * kTileRows + i) * kTileDepth, _MM_HINT_T0);
      }
      _tile_loadd(6, w, 64);
      if constexpr (row_tiles == 2) _tile_loadd(5, x + x_tile, x_stride);
      if constexpr (blocks == 2) _tile_loadd(7, w + w_block, 64);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (row_tiles == 2) _tile_dpbf16ps(2, 5, 6);
      if constexpr (blocks == 2) _tile_dpbf16ps(1, 4, 7);
      if constexpr (row_tiles == 2 && blocks == 2) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + kTileSums, 64);
  _tile_stored(2, sums + 2 * kTileSums, 64);
  _tile_stored(3, sums + 3 * kTileSums, 64);
}

// Rows from `row` on, at most row_tiles · 16 of them, × `blocks` blocks from `block` on, whose weights `w` begins with.
template <int row_tiles, int blocks, class Args>
ELAPID_INLINE void tiles(const Args& a, const Input& x, const BFloat16* w, int64_t row, int64_t row_end,
                         int64_t block) {
  alignas(64) float sums[4 * kTileSums];
  // A row of y is a line or two here and far from the next: ask for all of them while the products are computed.
  row_end = row_end < row + row_tiles * kTileRows ? row_end : row + row_tiles * kTileRows;
  for (int64_t r = row; r < row_end; ++r) {
    const float* to = a.y.template row<float>(r) + block * kPackBlock;
    for (int64_t b = 0; b < blocks; ++b) __builtin_prefetch(to + b * kPackBlock, 1);
  }
  products<row_tiles, blocks>(x.row(row), w, x.depth, sums);
  // Row tile i and block b are tile 2 i + b; of one row tile, blocks are tiles.
  for (int64_t r = row; r < row_end; ++r) {
    const float* from = sums + (r - row) / kTileRows * 2 * kTileSums + (r - row) % kTileRows * kPackBlock;
    for (int64_t b = 0; b < blocks; ++b) finish_row(a, r, block + b, load(from + b * kTileSums));
  }
}

// All rows of a range × `blocks` blocks: their weights stay in L1 or L2 while the rows pass.
template <int blocks, class Args>
ELAPID_INLINE void column(const Args& a, const Input& x, const BFloat16* w, int64_t row, int64_t row_end,
                          int64_t block) {
  for (; row_end - row > kTileRows; row += 2 * kTileRows) tiles<2, blocks>(a, x, w, row, row_end, block);
  if (row < row_end) tiles<1, blocks>(a, x, w, row, row_end, block);
}

// Rows [row, row_end) × blocks [block, block_end).
void task(const MatmulForward& a, const Input& x, int64_t row, int64_t row_end, int64_t block, int64_t block_end) {
  const Tiles configured;
  const auto at = [&](int64_t b) { return a.weight.ptr<BFloat16>() + b * x.depth * kPackBlock; };
  if (row_end - row <= kTileRows) {
    for (; block + 4 <= block_end; block += 4) tiles<1, 4>(a, x, at(block), row, row_end, block);
  }
  for (; block + 2 <= block_end; block += 2) column<2>(a, x, at(block), row, row_end, block);
  if (block < block_end) column<1>(a, x, at(block), row, row_end, block);
}

// Inputs 2i and 2i + 1 of sixteen outputs as pairs of bf16, from floats.
ELAPID_INLINE void store_pairs(BFloat16* to, __m512 even, __m512 odd) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const auto halves = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even));
  _mm512_storeu_si512(to, _mm512_permutexvar_epi16(order, halves));
}

// One block of quantized weights in the order of tiles.
void decode(const QuantizedMatmulForward& a, int64_t block, BFloat16* to) {
  const int64_t groups = quant_groups(a.weight.cols()), group_bytes = quant_group_bytes(a.packing);
  const char* group = static_cast<const char*>(a.weight.data) + block * groups * group_bytes;
  const __m512 levels = _mm512_loadu_ps(kNormalFloat4);
  for (int64_t g = 0; g < groups; ++g, group += group_bytes) {
    const __m512 scale = _mm512_loadu_ps(group);
    for (const char* word = group + kPackBlock * 4; word < group + group_bytes; word += kPackBlock * 4) {
      const __m512i codes = _mm512_loadu_si512(word);
      if (a.packing == Packing::int8) {
        static_for<2>([&](auto i) ELAPID_LAMBDA {
          const auto weights = [&](__m512i top) ELAPID_LAMBDA {
            return _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_srai_epi32(top, 24)));
          };
          store_pairs(to, weights(_mm512_slli_epi32(codes, 24 - 16 * i)),
                      weights(_mm512_slli_epi32(codes, 16 - 16 * i)));
          to += 2 * kPackBlock;
        });
      } else {
        static_for<4>([&](auto i) ELAPID_LAMBDA {
          const auto weights = [&](__m512i low)
                                   ELAPID_LAMBDA { return _mm512_mul_ps(scale, _mm512_permutexvar_ps(low, levels)); };
          store_pairs(to, weights(_mm512_srli_epi32(codes, 4 * i)), weights(_mm512_srli_epi32(codes, 16 + 4 * i)));
          to += 2 * kPackBlock;
        });
      }
    }
  }
}

ELAPID_INLINE Cut cut_of(int64_t rows, int64_t depth, int64_t out) {
  Cut c;
  const int64_t pair = 2 * kTileRows, fitting = kTaskInput / (depth * 2) / pair * pair;
  const int64_t most = fitting > 2 * pair ? fitting : 2 * pair;
  c.row_tasks = (rows + most - 1) / most;
  c.task_rows = rows == 0 ? 0 : ((rows + c.row_tasks - 1) / c.row_tasks + pair - 1) / pair * pair;
  // Some 10 µs of memory time with few rows, or of arithmetic with many: short enough that a thread which loses its
  // core delays the others little.
  const int64_t bytes = rows <= pair ? int64_t{256} << 10 : int64_t{64} << 10;
  c.task_blocks = bytes / (depth * kPackBlock * 2) / 4 * 4 + 4;
  c.block_tasks = (packed_blocks(out) + c.task_blocks - 1) / c.task_blocks;
  return c;
}

void task(const MatmulForward& a, const Input& x, const Cut& c, int64_t i) {
  for_task(c, i, a.y.rows(), packed_blocks(a.y.cols()),
           [&](int64_t row, int64_t row_end, int64_t block, int64_t block_end)
               ELAPID_LAMBDA { task(a, x, row, row_end, block, block_end); });
}

}  // namespace

void run(Amx cpu, const MatmulForward& a) {
  if (!a.rounded || a.x.rows() <= kFewRows) return run(Avx512{cpu.threads}, a);
  const Input x = rounded(cpu, a.x, packed_depth(a.x.cols()), a.rounded);
  const Cut cut = cut_of(a.x.rows(), x.depth, a.y.cols());
  parallel_for(cpu.threads, cut.tasks(), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) task(a, x, cut, i);
  });
}

void run(Amx cpu, const GroupedMatmulForward& a) {
  if (!a.rounded || a.x.rows() <= kFewRows) return run(Avx512{cpu.threads}, a);
  const Input x = rounded(cpu, a.x, packed_depth(a.x.cols()), a.rounded);
  const int64_t* offsets = a.offsets.ptr<int64_t>();
  for_grouped_tasks(
      cpu.threads, a, [&](int64_t rows) { return cut_of(rows, x.depth, a.y.cols()); },
      [&](int64_t g, const Cut& cut, int64_t i) {
        const MatmulForward group{.weight = a.weights[g].value, .y = a.y.slice(offsets[g], offsets[g + 1]), .alpha = 1};
        task(group, {x.row(offsets[g]), x.depth}, cut, i);
      });
}

// Panel by panel: what a panel costs to decode is shared by all rows, even where those are more than L2 holds.
void run(Amx cpu, const QuantizedMatmulForward& a) {
  if (a.x.rows() <= kFewRows) return run(Avx512{cpu.threads}, a);
  const int64_t rows = a.x.rows(), blocks = packed_blocks(a.y.cols());
  const Input x = rounded(cpu, a.x, quant_groups(a.x.cols()) * kQuantGroup, a.rounded);
  static_assert(kPanelBlocks == 2);
  parallel_for(cpu.threads, (blocks + 1) / 2, 1, [&](int64_t begin, int64_t end, int worker) {
    const Tiles configured;
    auto* panel = reinterpret_cast<BFloat16*>(static_cast<char*>(a.panels.data) + worker * panel_bytes(a.x.cols()));
    for (int64_t p = begin; p < end; ++p) {
      const bool two = 2 * p + 1 < blocks;
      decode(a, 2 * p, panel);
      if (two) decode(a, 2 * p + 1, panel + x.depth * kPackBlock);
      two ? column<2>(a, x, panel, 0, rows, 2 * p) : column<1>(a, x, panel, 0, rows, 2 * p);
    }
  });
}

}  // namespace elapid
