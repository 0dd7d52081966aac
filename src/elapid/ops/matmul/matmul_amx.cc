#include "elapid/core/parallel_walk.h"
#include "elapid/cpu/amx.h"
#include "elapid/ops/matmul/few_rows_amx.h"
#include "elapid/ops/matmul/grouped_matmul.h"
#include "elapid/ops/matmul/matmul_cpu.h"
#include "elapid/ops/matmul/quantized.h"

// bf16 products in AMX tiles: sixteen rows × 32 inputs times 32 inputs × sixteen outputs. Two tiles of rows meet two of
// weights, so that each is loaded once for two products. The packed order of bf16 weights is that of the tiles already;
// quantized ones are decoded into it, a panel of two blocks at a time, for all rows.

namespace elapid {
namespace {

static_assert(kAmxDepth == kPackDepth && kAmxRows == kPackBlock);

// So many rows are multiplied without tiles: what bounds them is the memory that the weights come from.
constexpr int kFewRows = 4, kFewRowsInIntegers = 2;

// Bytes of x that a task takes: they stay in L2 while weights pass, two blocks a task.
constexpr int64_t kTaskInput = int64_t{1} << 20;
constexpr int64_t kTaskBlocks = 2;

// x in bf16 in tiles, [tile row][depth / 32][16][32]: rows of one tile that are a power of two apart would meet in few
// sets of L1. Columns beyond x's own are zero; rows beyond are anything.
struct Input {
  const BFloat16* data;
  int64_t depth;

  [[nodiscard]] const BFloat16* tile_row(int64_t row) const { return data + row / kAmxRows * kAmxRows * depth; }
};

// Rows [begin, end) of x, of which row `first` begins a tile row, to `to`, where that tile row is.
ELAPID_INLINE void round_rows(const Tensor& x, int64_t first, int64_t begin, int64_t end, int64_t depth, BFloat16* to) {
  for (int64_t r = begin; r < end; ++r) {
    const float* from = x.row<float>(r);
    const int64_t tile = (r - first) / kAmxRows, row = (r - first) % kAmxRows;
    for (int64_t c = 0; c < depth; c += kAmxDepth) {
      const auto floats = [&](int64_t at)
                              ELAPID_LAMBDA { return load(from + at, at < x.cols() ? x.cols() - at : 0).v[0]; };
      const __m512bh pair = _mm512_cvtne2ps_pbh(floats(c + kLanes), floats(c));
      _mm512_storeu_si512(to + (tile * depth + c) * kAmxRows + row * kAmxDepth, reinterpret_cast<__m512i>(pair));
    }
  }
}

Input rounded(Amx cpu, const Tensor& x, int64_t depth, const Tensor& room) {
  auto* data = static_cast<BFloat16*>(room.data);
  parallel_for(cpu.threads, x.rows(), (int64_t{1} << 15) / depth + 1,
               [&](int64_t begin, int64_t end, int) { round_rows(x, 0, begin, end, depth, data); });
  return {data, depth};
}

// Weights that will be wanted soon: asked for while others are multiplied.
struct Ahead {
  const char *at, *end;

  ELAPID_INLINE void ask() {
    if (at >= end) return;
    for (int i = 0; i < 4; ++i) _mm_prefetch(at + int64_t{i} * 64, _MM_HINT_T1);
    at += 4 * 64;
  }
};

// As many blocks as `count` from `block` on, those that follow them: what the next task takes.
ELAPID_INLINE Ahead after(const void* data, int64_t block_bytes, int64_t block, int64_t count, int64_t blocks) {
  const int64_t end = block + 2 * count < blocks ? block + 2 * count : blocks;
  const char* begin = static_cast<const char*>(data);
  return {begin + (block + count) * block_bytes, begin + end * block_bytes};
}

// Rows [row, row_end) and at most row_tiles tiles of them, × `blocks` blocks from `block` on. multiply() leaves their
// sums in tiles.
template <int row_tiles, int blocks, class Args, class Multiply>
ELAPID_INLINE void outputs(const Args& a, int64_t row, int64_t row_end, int64_t block, const Multiply& multiply) {
  constexpr int64_t kStride = blocks * kPackBlock;
  alignas(64) float sums[row_tiles * kAmxRows * kStride];
  // A row of y is a line or two here and far from the next: ask for all of them while the products are computed.
  row_end = row_end < row + row_tiles * kAmxRows ? row_end : row + row_tiles * kAmxRows;
  for (int64_t r = row; r < row_end; ++r) {
    const float* to = a.y.template row<float>(r) + block * kPackBlock;
    for (int64_t b = 0; b < blocks; ++b) __builtin_prefetch(to + b * kPackBlock, 1);
  }
  clear_sums();
  multiply();
  store_tiles<row_tiles, blocks>(sums, kStride);
  for (int64_t r = row; r < row_end; ++r) {
    for (int64_t b = 0; b < blocks; ++b) finish_row(a, r, block + b, load(sums + (r - row) * kStride + b * kPackBlock));
  }
}

// The same with weights `w` as tiles want them; x begins with the first row's tile.
template <int row_tiles, int blocks, class Args>
ELAPID_INLINE void tiles(const Args& a, const BFloat16* x, const BFloat16* w, int64_t depth, int64_t row,
                         int64_t row_end, int64_t block, Ahead& ahead) {
  outputs<row_tiles, blocks>(a, row, row_end, block, [&] ELAPID_LAMBDA {
    multiply_tiles<row_tiles, blocks>(x, kAmxRows * depth, w, kPackBlock * depth, depth / kAmxDepth,
                                      [&] { ahead.ask(); });
  });
}

// All rows of a range × `blocks` blocks: their weights stay in L2 while the rows pass.
template <int blocks, class Args>
ELAPID_INLINE void column(const Args& a, const BFloat16* x, const BFloat16* w, int64_t depth, int64_t row,
                          int64_t row_end, int64_t block, Ahead& ahead) {
  for (; row_end - row > kAmxRows; row += 2 * kAmxRows, x += 2 * kAmxRows * depth) {
    tiles<2, blocks>(a, x, w, depth, row, row_end, block, ahead);
  }
  if (row < row_end) tiles<1, blocks>(a, x, w, depth, row, row_end, block, ahead);
}

// `count` groups of one block of quantized weights from group `first` on, in the order of tiles.
void decode(const QuantizedMatmulForward& a, int64_t block, int64_t first, int64_t count, BFloat16* to) {
  const int64_t groups = quant_groups(a.weight.cols()), group_bytes = quant_group_bytes(a.packing);
  const char* group = static_cast<const char*>(a.weight.data) + (block * groups + first) * group_bytes;
  const __m512 levels = _mm512_loadu_ps(kNormalFloat4);
  for (int64_t g = 0; g < count; ++g, group += group_bytes) {
    const __m512 scale = _mm512_loadu_ps(group);
    for (const char* word = group + kPackBlock * 4; word < group + group_bytes; word += kPackBlock * 4) {
      const __m512i codes = _mm512_loadu_si512(word);
      if (a.packing == Packing::int8) {
        static_for<2>([&](auto i) ELAPID_LAMBDA {
          const auto weights = [&](__m512i top) ELAPID_LAMBDA {
            return _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_srai_epi32(top, 24)));
          };
          _mm512_storeu_si512(to, bf16_pairs(weights(_mm512_slli_epi32(codes, 24 - 16 * i)),
                                             weights(_mm512_slli_epi32(codes, 16 - 16 * i))));
          to += 2 * kPackBlock;
        });
      } else {
        static_for<4>([&](auto i) ELAPID_LAMBDA {
          const auto weights = [&](__m512i low)
                                   ELAPID_LAMBDA { return _mm512_mul_ps(scale, _mm512_permutexvar_ps(low, levels)); };
          _mm512_storeu_si512(
              to, bf16_pairs(weights(_mm512_srli_epi32(codes, 4 * i)), weights(_mm512_srli_epi32(codes, 16 + 4 * i))));
          to += 2 * kPackBlock;
        });
      }
    }
  }
}

// Tasks of two blocks (four where x is one tile high) × rows whose x fits L2.
ELAPID_INLINE Cut cut_of(int64_t rows, int64_t depth, int64_t out) {
  Cut c;
  const int64_t pair = 2 * kAmxRows, fitting = kTaskInput / (depth * 2) / pair * pair;
  const int64_t most = fitting > 2 * pair ? fitting : 2 * pair;
  c.row_tasks = (rows + most - 1) / most;
  c.task_rows = rows == 0 ? 0 : ((rows + c.row_tasks - 1) / c.row_tasks + pair - 1) / pair * pair;
  c.task_blocks = rows <= kAmxRows ? 4 : 2;
  c.block_tasks = (packed_blocks(out) + c.task_blocks - 1) / c.task_blocks;
  return c;
}

// Task i of a cut, blocks first: a thread that goes on to the next keeps its rows of x. weights(block, blocks, ahead)
// are those of up to four blocks, and says what comes after them.
template <class Args, class Weights>
ELAPID_INLINE void task(const Args& a, const Input& x, const Cut& c, int64_t i, const Weights& weights) {
  const Tiles configured;
  const int64_t blocks = packed_blocks(a.y.cols()), rows = a.y.rows();
  const int64_t block = i % c.block_tasks * c.task_blocks, row = i / c.block_tasks * c.task_rows;
  const int64_t row_end = row + c.task_rows < rows ? row + c.task_rows : rows;
  if (row >= row_end) return;
  Ahead ahead{};
  const BFloat16* from = x.tile_row(row);
  int64_t left = blocks - block < c.task_blocks ? blocks - block : c.task_blocks, b = block;
  const BFloat16* w = weights(block, left, ahead);
  if (left == 4) return tiles<1, 4>(a, from, w, x.depth, row, row_end, block, ahead);
  for (; left >= 2; left -= 2, b += 2, w += 2 * x.depth * kPackBlock) {
    column<2>(a, from, w, x.depth, row, row_end, b, ahead);
  }
  if (left == 1) column<1>(a, from, w, x.depth, row, row_end, b, ahead);
}

// Weights that are stored as tiles want them.
struct Stored {
  const BFloat16* data;
  int64_t depth, blocks;

  ELAPID_INLINE const BFloat16* operator()(int64_t block, int64_t count, Ahead& ahead) const {
    ahead = after(data, depth * kPackBlock * size_of(DType::bf16), block, count, blocks);
    return data + block * depth * kPackBlock;
  }
};

// Quantized ones, decoded into `panel`.
struct Decoded {
  const QuantizedMatmulForward& a;
  int64_t depth, blocks;
  BFloat16* panel;

  ELAPID_INLINE const BFloat16* operator()(int64_t block, int64_t count, Ahead& ahead) const {
    const int64_t groups = quant_groups(a.weight.cols());
    for (int64_t b = 0; b < count; ++b) decode(a, block + b, 0, groups, panel + b * depth * kPackBlock);
    ahead = after(a.weight.data, groups * quant_group_bytes(a.packing), block, count, blocks);
    return panel;
  }
};

}  // namespace

void run(Amx cpu, const MatmulForward& a) {
  if (!a.rounded) return run(Avx512{cpu.threads}, a);
  const int64_t rows = a.x.rows(), depth = packed_depth(a.x.cols()), blocks = packed_blocks(a.y.cols());
  if (rows <= kFewRows) {
    auto* x = static_cast<BFloat16*>(a.rounded.data);
    round_pairs(a.x, depth, x);
    return with_rows<kFewRows>(rows, [&](auto n) {
      walk_blocks(
          cpu, blocks, [] { return 0; },
          [&](auto count, int64_t block)
              ELAPID_LAMBDA { pairs<decltype(n)::value, decltype(count)::value>(a, x, depth, block); });
    });
  }
  const Input x = rounded(cpu, a.x, depth, a.rounded);
  if (rows <= kAmxRows) {
    return walk_blocks(
        cpu, blocks, [&] { return Tiles(rows); },
        [&](auto count, int64_t block) ELAPID_LAMBDA { pair_tiles<decltype(count)::value>(a, x.data, depth, block); });
  }
  const Cut cut = cut_of(rows, depth, a.y.cols());
  const Stored weights{a.weight.ptr<BFloat16>(), depth, blocks};
  parallel_walk(cpu.threads, cut.tasks(), [&](int64_t i, int) { task(a, x, cut, i, weights); });
}

void run(Amx cpu, const GroupedMatmulForward& a) {
  if (!a.rounded || a.x.rows() <= kFewRows) return run(Avx512{cpu.threads}, a);
  const int64_t depth = packed_depth(a.x.cols()), groups = a.offsets.size() - 1;
  const int64_t* offsets = a.offsets.ptr<int64_t>();
  // A group begins a tile row: at most one more than its rows need comes before each.
  const auto tiles_of = [&](int64_t g) ELAPID_LAMBDA {
    return static_cast<BFloat16*>(a.rounded.data) + (offsets[g] / kAmxRows + g) * kAmxRows * depth;
  };
  parallel_for(cpu.threads, groups, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t g = begin; g < end; ++g) {
      round_rows(a.x, offsets[g], offsets[g], offsets[g + 1], depth, tiles_of(g));
    }
  });
  for_grouped_tasks(
      cpu.threads, a, [&](int64_t rows) { return cut_of(rows, depth, a.y.cols()); },
      [&](int64_t g, const Cut& cut, int64_t i) {
        const MatmulForward group{.weight = a.weights[g].value, .y = a.y.slice(offsets[g], offsets[g + 1]), .alpha = 1};
        task(group, Input{tiles_of(g), depth}, cut, i,
             Stored{group.weight.ptr<BFloat16>(), depth, packed_blocks(a.y.cols())});
      });
}

// At most sixteen rows.
template <class Codes>
void few_rows(Amx cpu, const QuantizedMatmulForward& a, const IntegerRows& x) {
  const int64_t blocks = packed_blocks(a.y.cols()), rows = a.y.rows();
  if (rows > kFewRowsInIntegers) {
    return walk_blocks(
        cpu, blocks, [&] { return Tiles(rows); },
        [&](auto count, int64_t block) ELAPID_LAMBDA { integer_tiles<decltype(count)::value, Codes>(a, x, block); });
  }
  with_rows<kFewRowsInIntegers>(rows, [&](auto n) {
    walk_blocks(
        cpu, blocks, [] { return 0; },
        [&](auto count, int64_t block)
            ELAPID_LAMBDA { integers<decltype(n)::value, decltype(count)::value, Codes>(a, x, block); });
  });
}

void run(Amx cpu, const QuantizedMatmulForward& a) {
  const int64_t blocks = packed_blocks(a.y.cols());
  if (a.x.rows() <= kAmxRows) {
    const IntegerRows x(a.rounded, a.x.rows());
    if (!to_integers(a.x, a.packing, x)) {
      if (a.x.rows() == 1) return run(Avx512{cpu.threads}, a);
      // Each row by itself: what one holds must not change the others.
      for (int64_t r = 0; r < a.x.rows(); ++r) {
        QuantizedMatmulForward row = a;
        for (Tensor* t : {&row.x, &row.add, &row.y}) {
          if (*t) *t = t->slice(r, r + 1);
        }
        run(cpu, row);
      }
      return;
    }
    return a.packing == Packing::int8 ? few_rows<Int8Codes>(cpu, a, x) : few_rows<Int4Codes>(cpu, a, x);
  }
  const Input x = rounded(cpu, a.x, quant_groups(a.x.cols()) * kQuantGroup, a.rounded);
  const Cut cut = cut_of(a.x.rows(), x.depth, a.y.cols());
  static_assert(kPanelBlocks == 2, "of more rows, a task takes two blocks");
  parallel_walk(cpu.threads, cut.tasks(), [&](int64_t i, int worker) {
    auto* panel = reinterpret_cast<BFloat16*>(static_cast<char*>(a.panels.data) + worker * panel_bytes(a.x.cols()));
    task(a, x, cut, i, Decoded{a, x.depth, blocks, panel});
  });
}

}  // namespace elapid
