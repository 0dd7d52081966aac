#include "elapid/ops/matmul/float_tiles_cpu.h"
#include "elapid/ops/matmul/normal_float4_cpu.h"
#include "elapid/ops/matmul/quantized.h"

// Few rows: codes become floats in registers, sixteen outputs at a time, and meet every row of a tile. A group's sums
// are scaled once, when it ends. More rows: a block of codes becomes floats in memory, once for all rows of a task.

namespace elapid {
namespace {

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

#if defined(ELAPID_ISA_AVX512)
constexpr int kCodeHeights[] = {8, 4, 2, 1};
constexpr int code_blocks_for(int rows) { return rows >= 8 ? 1 : rows >= 2 ? 2 : 4; }
#elif defined(ELAPID_ISA_AVX2)
constexpr int kCodeHeights[] = {2, 1};
constexpr int code_blocks_for(int rows) { return rows == 1 ? 2 : 1; }
#else
constexpr int kCodeHeights[] = {1};
constexpr int code_blocks_for(int) { return 1; }
#endif

// Registers for eight rows make little of decoding.
constexpr bool kDecodesOnce = kCodeHeights[0] < 8;

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
void code_tile(const QuantizedMatmulForward& a, int64_t row, int64_t block) {
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
void code_tile_row(const QuantizedMatmulForward& a, int64_t row, int64_t block, int64_t block_end) {
  constexpr int kBlocks = code_blocks_for(rows);
  for (; block + kBlocks <= block_end; block += kBlocks) code_tile<rows, kBlocks, Code>(a, row, block);
  if constexpr (kBlocks > 1) {
    for (; block < block_end; ++block) code_tile<rows, 1, Code>(a, row, block);
  }
}

// One block's codes as floats, [in, up to whole groups][16].
template <class Code>
void decode(const QuantizedMatmulForward& a, int64_t block, float* to) {
  constexpr int64_t kGroupBytes = quant_group_bytes(Code::packing);
  const int64_t groups = quant_groups(a.weight.cols());
  const char* group = static_cast<const char*>(a.weight.data) + block * groups * kGroupBytes;
  for (int64_t g = 0; g < groups; ++g, group += kGroupBytes) {
    for (const char* word = group + kPackBlock * 4; word < group + kGroupBytes; word += kPackBlock * 4) {
      static_for<Code::inputs>([&](auto j) ELAPID_LAMBDA {
        store(to, by_part([&](auto i) ELAPID_LAMBDA {
                return Code::template weights<decltype(j)::value>(part_load_int(word + i * kPartLanes * 4));
              }));
        to += kPackBlock;
      });
    }
  }
}

// A group's sum is scaled as it joins the others.
template <class Code>
struct Scaled {
  static constexpr int64_t inputs = kQuantGroup;
  const char* groups;
  ELAPID_INLINE F32 operator()(const F32& total, const F32& sum, int64_t group) const {
    return fma(load(reinterpret_cast<const float*>(groups + group * quant_group_bytes(Code::packing))), sum, total);
  }
};

static_assert(kPanelBlocks * size_of(DType::bf16) >= size_of(DType::f32), "a panel holds a block of floats");

template <class Code>
void multiply_decoded(Cpu cpu, const QuantizedMatmulForward& a) {
  const int64_t in = a.weight.cols(), out = a.y.cols();
  const Cut cut = cut_of<float>(a.x.rows(), in, out);
  parallel_for(cpu.threads, cut.tasks(), 1, [&](int64_t begin, int64_t end, int worker) {
    auto* panel = reinterpret_cast<float*>(static_cast<char*>(a.panels.data) + worker * panel_bytes(in));
    for (int64_t i = begin; i < end; ++i) {
      for_task(cut, i, a.x.rows(), packed_blocks(out), [&](int64_t row, int64_t row_end, int64_t b, int64_t block_end) {
        for (; b < block_end; ++b) {
          const int64_t first = b * kPackBlock, last = smaller(out, first + kPackBlock);
          decode<Code>(a, b, panel);
          const MatmulForward block{.x = a.x,
                                    .weight = Tensor(panel, DType::f32, {last - first, in}),
                                    .bias = a.bias ? a.bias.slice(first, last) : Tensor(),
                                    .add = a.add ? a.add.columns(first, last) : Tensor(),
                                    .y = a.y.columns(first, last),
                                    .alpha = a.alpha};
          const int64_t block_bytes = quant_groups(in) * quant_group_bytes(Code::packing);
          const Scaled<Code> scaled{static_cast<const char*>(a.weight.data) + b * block_bytes};
          task<float>(block, row, row_end, 0, 1, scaled);
        }
      });
    }
  });
}

template <class Code>
void multiply(Cpu cpu, const QuantizedMatmulForward& a) {
  if (kDecodesOnce && a.x.rows() > kCodeHeights[0]) return multiply_decoded<Code>(cpu, a);
  const int64_t blocks = packed_blocks(a.y.cols());
  // About 64 KiB of weights a task, whole widest tiles: they stay in L2 while rows pass.
  const int64_t block_bytes = quant_groups(a.weight.cols()) * quant_group_bytes(Code::packing);
  const int64_t grain = (int64_t{64} << 10) / block_bytes / 4 * 4 + 4;
  parallel_for(cpu.threads, blocks, grain, [&](int64_t begin, int64_t end, int) {
    int64_t r = 0;
    static_for<static_cast<int>(sizeof kCodeHeights / sizeof *kCodeHeights)>([&](auto i) ELAPID_LAMBDA {
      constexpr int kHeight = kCodeHeights[i];
      for (; r + kHeight <= a.x.rows(); r += kHeight) code_tile_row<kHeight, Code>(a, r, begin, end);
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
