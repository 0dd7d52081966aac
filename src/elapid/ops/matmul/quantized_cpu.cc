#include "elapid/ops/matmul/matmul_cpu.h"
#include "elapid/ops/matmul/normal_float4_cpu.h"
#include "elapid/ops/matmul/quantized.h"

// Codes become floats in registers, sixteen outputs at a time, and meet every row of a tile. A group's sums are scaled
// once, when it ends.

namespace elapid {
namespace {

#if defined(ELAPID_ISA_AVX512)
constexpr int kHeights[] = {8, 4, 2, 1};
constexpr int blocks_for(int rows) { return rows >= 8 ? 1 : rows >= 2 ? 2 : 4; }
#elif defined(ELAPID_ISA_AVX2)
constexpr int kHeights[] = {2, 1};
constexpr int blocks_for(int rows) { return rows == 1 ? 2 : 1; }
#else
constexpr int kHeights[] = {1};
constexpr int blocks_for(int) { return 1; }
#endif

// How a word of codes is read.
struct Int8 {
  static constexpr Packing packing = Packing::int8;
  static constexpr int inputs = 4;
  template <int k>
  ELAPID_INLINE static Part weights(IntPart word) {
    return part_to_float(part_shift_right<24>(part_shift_left<24 - 8 * k>(word)));
  }
};
struct Int4 {
  static constexpr Packing packing = Packing::int4;
  static constexpr int inputs = 8;
  template <int k>
  ELAPID_INLINE static Part weights(IntPart word) {
    return part_normal_float4(part_shift_right<k / 2 * 4 + k % 2 * 16>(word));
  }
};

template <int rows, int blocks, class Code>
void tile(const QuantizedMatmulForward& a, int64_t row, int64_t block) {
  constexpr int64_t kGroupBytes = quant_group_bytes(Code::packing);
  const int64_t in = a.weight.cols(), groups = quant_groups(in), x_stride = a.x.row_stride();
  const float* x = a.x.row<float>(row);
  const char* group = static_cast<const char*>(a.weight.data) + block * groups * kGroupBytes;
  F32 total[rows][blocks];
  static_for<rows>([&](auto r)
                       ELAPID_LAMBDA { static_for<blocks>([&](auto b) ELAPID_LAMBDA { total[r][b] = zero(); }); });
  for (int64_t g = 0; g < groups; ++g, group += kGroupBytes) {
    F32 acc[rows][blocks];
    static_for<rows>([&](auto r)
                         ELAPID_LAMBDA { static_for<blocks>([&](auto b) ELAPID_LAMBDA { acc[r][b] = zero(); }); });
    const int64_t end = in < (g + 1) * kQuantGroup ? in : (g + 1) * kQuantGroup;
    const char* word = group + kPackBlock * 4;
    for (int64_t k = g * kQuantGroup; k < end; k += Code::inputs, word += kPackBlock * 4) {
      IntPart words[blocks][kParts];
      static_for<blocks>([&](auto b) ELAPID_LAMBDA {
        static_for<kParts>([&](auto i) ELAPID_LAMBDA {
          words[b][i] = part_load_int(word + b * groups * kGroupBytes + i * kPartLanes * 4);
        });
      });
      static_for<Code::inputs>([&](auto j) ELAPID_LAMBDA {
        F32 weights[blocks];
        static_for<blocks>([&](auto b) ELAPID_LAMBDA {
          weights[b] =
              by_part([&](auto i) ELAPID_LAMBDA { return Code::template weights<decltype(j)::value>(words[b][i]); });
        });
        static_for<rows>([&](auto r) ELAPID_LAMBDA {
          const F32 xk = broadcast(x[r * x_stride + k + j]);
          static_for<blocks>([&](auto b) ELAPID_LAMBDA { acc[r][b] = fma(xk, weights[b], acc[r][b]); });
        });
      });
    }
    static_for<blocks>([&](auto b) ELAPID_LAMBDA {
      const F32 scale = load(reinterpret_cast<const float*>(group + b * groups * kGroupBytes));
      static_for<rows>([&](auto r) ELAPID_LAMBDA { total[r][b] = fma(scale, acc[r][b], total[r][b]); });
    });
  }
  static_for<blocks>([&](auto b) ELAPID_LAMBDA {
    static_for<rows>([&](auto r) ELAPID_LAMBDA { finish_row(a, row + r, block + b, total[r][b]); });
  });
}

template <int rows, class Code>
void tile_row(const QuantizedMatmulForward& a, int64_t row, int64_t block, int64_t block_end) {
  constexpr int kBlocks = blocks_for(rows);
  for (; block + kBlocks <= block_end; block += kBlocks) tile<rows, kBlocks, Code>(a, row, block);
  if constexpr (kBlocks > 1) {
    for (; block < block_end; ++block) tile<rows, 1, Code>(a, row, block);
  }
}

template <class Code>
void multiply(Cpu cpu, const QuantizedMatmulForward& a) {
  const int64_t blocks = packed_blocks(a.y.cols());
  // About 64 KiB of weights a task, whole widest tiles: they stay in L2 while rows pass.
  const int64_t block_bytes = quant_groups(a.weight.cols()) * quant_group_bytes(Code::packing);
  const int64_t grain = (int64_t{64} << 10) / block_bytes / 4 * 4 + 4;
  parallel_for(cpu.threads, blocks, grain, [&](int64_t begin, int64_t end, int) {
    int64_t r = 0;
    static_for<static_cast<int>(sizeof kHeights / sizeof *kHeights)>([&](auto i) ELAPID_LAMBDA {
      constexpr int kHeight = kHeights[i];
      for (; r + kHeight <= a.x.rows(); r += kHeight) tile_row<kHeight, Code>(a, r, begin, end);
    });
  });
}

}  // namespace

void run(Cpu cpu, const QuantizedMatmulForward& a) {
  QuantizedMatmulForward b = a;
  b.x = rounded_floats(cpu, a.x, packed_depth(a.x.cols()), a.rounded);
  a.packing == Packing::int8 ? multiply<Int8>(cpu, b) : multiply<Int4>(cpu, b);
}

}  // namespace elapid
