#include "elapid/cpu/simd.h"
#include "elapid/ops/matmul/grouped_matmul.h"
#include "elapid/ops/matmul/matmul.h"

// bf16 products in AMX tiles: sixteen rows × 32 inputs times 32 inputs × sixteen outputs. Two tiles of rows meet two of
// weights, so that each is loaded once for two products. The packed order is that of the tiles already.

namespace elapid {
namespace {

constexpr int64_t kTileRows = 16, kTileDepth = kPackDepth;
constexpr int64_t kTileSums = kTileRows * kPackBlock;

// So many rows go one register tile high at AVX-512: what bounds them is the memory that the weights come from.
constexpr int64_t kFewRows = 4;

// Bytes of x that a task takes: they stay in L2 while the task's weights pass.
constexpr int64_t kTaskInput = int64_t{1} << 20;

// Sixteen rows of 64 bytes for all eight tiles, on this thread, while it lives.
class Tiles {
 public:
  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// x in bf16, with the columns that tiles read beyond its own zero.
struct Input {
  const BFloat16* data;
  int64_t depth;

  [[nodiscard]] const BFloat16* row(int64_t r) const { return data + r * depth; }
};

Input rounded(Amx cpu, const Tensor& x, const Tensor& room) {
  const int64_t depth = packed_depth(x.cols());
  auto* data = static_cast<BFloat16*>(room.data);
  parallel_for(cpu.threads, x.rows(), (int64_t{1} << 15) / depth + 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const float* from = x.row<float>(r);
      for (int64_t c = 0; c < depth; c += kTileDepth) {
        const int64_t n = x.cols() - c, high = n > kLanes ? n - kLanes : 0;
        const __m512bh pair = _mm512_cvtne2ps_pbh(load(from + c + kLanes, high).v[0], load(from + c, n).v[0]);
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

// What comes after the sums of one tile, for the rows and outputs that exist.
ELAPID_INLINE void finish(const MatmulForward& a, const float* sums, int64_t row, int64_t row_end, int64_t block) {
  const int64_t column = block * kPackBlock, n = a.y.cols() - column;
  const F32 alpha = broadcast(a.alpha), bias = a.bias ? load(a.bias.ptr<float>() + column, n) : zero();
  row_end = row_end < row + kTileRows ? row_end : row + kTileRows;
  for (int64_t r = row; r < row_end; ++r, sums += kPackBlock) {
    F32 y = alpha * (load(sums) + bias);
    if (a.add) y = y + load(a.add.row<float>(r) + column, n);
    store(a.y.row<float>(r) + column, y, n);
  }
}

template <int row_tiles, int blocks>
ELAPID_INLINE void tiles(const MatmulForward& a, const Input& x, int64_t row, int64_t row_end, int64_t block) {
  alignas(64) float sums[4 * kTileSums];
  // A row of y is a line or two here and far from the next: ask for all of them while the products are computed.
  for (int64_t r = row; r < row_end && r < row + row_tiles * kTileRows; ++r) {
    const float* to = a.y.row<float>(r) + block * kPackBlock;
    for (int64_t b = 0; b < blocks; ++b) __builtin_prefetch(to + b * kPackBlock, 1);
  }
  products<row_tiles, blocks>(x.row(row), a.weight.ptr<BFloat16>() + block * x.depth * kPackBlock, x.depth, sums);
  for (int64_t i = 0; i < row_tiles; ++i) {
    for (int64_t b = 0; b < blocks; ++b) {
      // Tile 2 i + b; four blocks of one row tile are tiles b.
      finish(a, sums + (2 * i + b) * kTileSums, row + i * kTileRows, row_end, block + b);
    }
  }
}

template <int blocks>
ELAPID_INLINE void column(const MatmulForward& a, const Input& x, int64_t row, int64_t row_end, int64_t block) {
  for (; row_end - row > kTileRows; row += 2 * kTileRows) tiles<2, blocks>(a, x, row, row_end, block);
  if (row < row_end) tiles<1, blocks>(a, x, row, row_end, block);
}

// Rows [row, row_end) × blocks [block, block_end). A block's weights stay in L1 or L2 while all rows pass.
void task(const MatmulForward& a, const Input& x, int64_t row, int64_t row_end, int64_t block, int64_t block_end) {
  const Tiles configured;
  if (row_end - row <= kTileRows) {
    for (; block + 4 <= block_end; block += 4) tiles<1, 4>(a, x, row, row_end, block);
  }
  for (; block + 2 <= block_end; block += 2) column<2>(a, x, row, row_end, block);
  if (block < block_end) column<1>(a, x, row, row_end, block);
}

// How a product is cut into tasks.
struct Cut {
  int64_t row_tasks, task_rows, block_tasks, task_blocks;

  ELAPID_INLINE int64_t tasks() const { return row_tasks * block_tasks; }
};

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

// Task i of c.tasks(). Neighbouring tasks share weights: they come from memory once.
void task(const MatmulForward& a, const Input& x, const Cut& c, int64_t i) {
  const int64_t rows = a.y.rows(), blocks = packed_blocks(a.y.cols());
  const int64_t row = i % c.row_tasks * c.task_rows, block = i / c.row_tasks * c.task_blocks;
  const int64_t row_end = row + c.task_rows < rows ? row + c.task_rows : rows;
  const int64_t block_end = block + c.task_blocks < blocks ? block + c.task_blocks : blocks;
  if (row < row_end) task(a, x, row, row_end, block, block_end);
}

}  // namespace

void run(Amx cpu, const MatmulForward& a) {
  if (!a.rounded || a.x.rows() <= kFewRows) return run(Avx512{cpu.threads}, a);
  const Input x = rounded(cpu, a.x, a.rounded);
  const Cut cut = cut_of(a.x.rows(), x.depth, a.y.cols());
  parallel_for(cpu.threads, cut.tasks(), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) task(a, x, cut, i);
  });
}

// All groups' tasks in one job, as without tiles.
void run(Amx cpu, const GroupedMatmulForward& a) {
  if (!a.rounded || a.x.rows() <= kFewRows) return run(Avx512{cpu.threads}, a);
  const int64_t groups = a.offsets.size() - 1, out = a.y.cols();
  const int64_t* offsets = a.offsets.ptr<int64_t>();
  int64_t* first_task = a.first_task.ptr<int64_t>();
  const Input x = rounded(cpu, a.x, a.rounded);
  int64_t tasks = 0;
  for (int64_t g = 0; g < groups; ++g) {
    first_task[g] = tasks;
    tasks += cut_of(offsets[g + 1] - offsets[g], x.depth, out).tasks();
  }
  first_task[groups] = tasks;
  parallel_for(cpu.threads, tasks, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      int64_t low = 0, high = groups;  // first_task[low] ≤ i < first_task[high]
      while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (first_task[middle] <= i ? low : high) = middle;
      }
      const MatmulForward group{
          .weight = a.weights[low].value, .y = a.y.slice(offsets[low], offsets[low + 1]), .alpha = 1};
      task(group, {x.row(offsets[low]), x.depth}, cut_of(group.y.rows(), x.depth, out), i - first_task[low]);
    }
  });
}

}  // namespace elapid
