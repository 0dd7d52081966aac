#include "elapid/cuda/mma.cuh"
#include "elapid/ops/ssd_scan/ssd_scan_cuda.cuh"

// The chunked scan on tensor cores. A block walks the chunks of one segment for `units` heads of a group (a unit is
// kRows rows of one head's state), four warps a unit. In a chunk of 64 tokens, warp r of a unit has
//   of y the tokens 16 r … 16 r + 15, all kRows columns:
//     y = exp(cs) ∘ (C Sᵀ) + (C Bᵀ ∘ decay ∘ dt) x + D x
//   of the state the rows 16 r …, all d_state columns, float32 in its registers over the whole segment:
//     S = exp(cs_last) S + (w ∘ x)ᵀ B,   w_j = dt_j · exp(cs_last − cs_j)
// Scores C Bᵀ come by sixteen tokens j at a time and go from accumulators to operands in registers; the state goes to
// shared memory as bf16 once a chunk, since every warp multiplies by all of it. Operands of the next chunk are copied
// while one is computed where there are two stages. Nothing but x, B, C and y, and each chunk's time steps and decays,
// which a kernel before has made of dt for all chunks at once, touches device memory.

namespace elapid::cuda {
namespace {

constexpr int kChunk = 64, kRows = 64, kWarpsOfUnit = 4;
constexpr int kRowStride = kRows + 8;  // elements; rows of eight matrices fall into different banks

// Of one chunk of one head. As operands of bf16 products they need no more care than their sums in a tree.
struct Scalars {
  float decay[kChunk];    // cs · log2 e; beyond the last token its value
  float dt[kChunk];       // zero beyond
  float outflow[kChunk];  // w
};
static_assert(sizeof(Scalars) == kSsdScalars * kSsdChunk * sizeof(float));

constexpr int kScalarWarps = 8;

// A warp has a chunk of a head, two tokens a lane.
__global__ void __launch_bounds__(kScalarWarps* kWarp) scalars_of_chunks(Ssd<bf16> a, int64_t chunks) {
  const int64_t work = int64_t{blockIdx.x} * kScalarWarps + threadIdx.x / kWarp;
  if (work >= chunks * a.heads) return;
  const int64_t chunk = work / a.heads, head = work % a.heads, s = range_of(a.chunk_begin, a.sequences, chunk);
  const int64_t token = a.offsets[s] + (chunk - a.chunk_begin[s]) * kChunk;
  const int length = static_cast<int>(min(int64_t{kChunk}, a.offsets[s + 1] - token));
  Scalars& m = reinterpret_cast<Scalars*>(a.chunks)[work];
  const int lane = threadIdx.x % kWarp;
  const float A = a.A[head];
  float dt[2], sum[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool there = 2 * lane + i < length;
    dt[i] = there ? a.time_step(token + 2 * lane + i, head) : 0;
    const float step = dt[i] * A;
    sum[i] = there ? kLog2e * (step < kLowestDecay ? kLowestDecay : step) : 0;
  }
  float before = sum[0] + sum[1];
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const float other = __shfl_up_sync(kAllLanes, before, distance);
    if (lane >= distance) before += other;
  }
  const float total = __shfl_sync(kAllLanes, before, kWarp - 1);
  before = __shfl_up_sync(kAllLanes, before, 1);
  if (lane == 0) before = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int at = 2 * lane + i;
    before += sum[i];
    const float cs = at >= length - 1 ? total : before;
    m.decay[at] = cs;
    m.dt[at] = dt[i];
    m.outflow[at] = dt[i] * exp2_fast(fminf(total - cs, 0));
  }
}

template <int states, int units, int stages, bool outputs>
struct Memory {
  static constexpr int kStride = states + 8;
  struct Stage {
    bf16 B[kChunk * kStride];
    bf16 C[outputs ? kChunk * kStride : 8];
    bf16 x[units][kChunk * kRowStride];
    Scalars scalars[units];
  } stage[stages];
  bf16 state[outputs ? units : 1][outputs ? kRows * kStride : 8];
  bf16 y[outputs ? units : 1][outputs ? kChunk * kRowStride : 8];
};

// `blocks` on a multiprocessor: several hide each other's waits, alone a warp keeps its rows of C in registers.
template <int states, int units, int stages, int blocks, bool outputs>
__global__ void __launch_bounds__(units* kWarpsOfUnit* kWarp, blocks) walk(Ssd<bf16> a, int64_t unit_blocks) {
  extern __shared__ __align__(16) char shared[];
  using M = Memory<states, units, stages, outputs>;
  M& m = *reinterpret_cast<M*>(shared);
  constexpr int kStride = M::kStride, kThreads = units * kWarpsOfUnit * kWarp;

  const Segment segment(a, blockIdx.x / unit_blocks);
  if (!outputs && segment.is_last()) return;
  // Units of a group, one after another: heads, and of each its tiles of rows.
  const int64_t tiles = ceil_div<int64_t>(a.head_dim, kRows), per_group = a.heads / a.groups * tiles;
  const int64_t blocks_of_group = ceil_div<int64_t>(per_group, units);
  const int64_t group = blockIdx.x % unit_blocks / blocks_of_group;
  const int64_t first_unit = blockIdx.x % unit_blocks % blocks_of_group * units;
  const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp % kWarpsOfUnit,
            own = thread / kWarp / kWarpsOfUnit;
  const bool idle = first_unit + own >= per_group;  // copies and waits with the others
  const int64_t unit = idle ? first_unit : first_unit + own;
  const int64_t head = group * (a.heads / a.groups) + unit / tiles, first_row = unit % tiles * kRows;
  const int rows = static_cast<int>(min(int64_t{kRows}, a.head_dim - first_row));
  const int row = lane / 4, column = lane % 4 * 2;  // of an accumulator
  const float head_skip = a.D != nullptr && a.D_per_head ? a.D[head] : 0;

  // The state: rows 16 warp + row and + 8, columns 8 i + column and the next.
  float state[states / 8][4];
  const float* before = outputs && !idle ? segment.before(a, head) : nullptr;
#pragma unroll
  for (int i = 0; i < states / 8; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int p = 16 * warp + row + j / 2 * 8, n = 8 * i + column + j % 2;
      const bool there = before != nullptr && p < rows && n < a.d_state;
      state[i][j] = there ? before[(first_row + p) * a.d_state + n] : 0;
    }
  }

  const auto copy = [&](int64_t token, int to) {
    const int64_t length = segment.end - token;
    auto& stage = m.stage[to];
    const int64_t at = group * a.d_state;
    copy_tile<kChunk, states>(stage.B, kStride, a.B + token * a.B_stride + at, a.B_stride, length, a.d_state,
                              a.wide_operands, thread, kThreads);
    if constexpr (outputs) {
      copy_tile<kChunk, states>(stage.C, kStride, a.C + token * a.C_stride + at, a.C_stride, length, a.d_state,
                                a.wide_operands, thread, kThreads);
    }
    copy_tile<kChunk, kRows>(stage.x[own], kRowStride, a.x + token * a.x_stride + head * a.head_dim + first_row,
                             a.x_stride, length, rows, a.wide_x, thread % (kWarpsOfUnit * kWarp), kWarpsOfUnit * kWarp);
    constexpr int kPieces = sizeof(Scalars) / 16;
    if (const int piece = thread % (kWarpsOfUnit * kWarp); piece < kPieces) {
      const int64_t chunk = a.chunk_begin[segment.sequence] + (token - a.offsets[segment.sequence]) / kChunk;
      copy_ahead(
          reinterpret_cast<uint4*>(&stage.scalars[own]) + piece,
          reinterpret_cast<const uint4*>(reinterpret_cast<const Scalars*>(a.chunks) + chunk * a.heads + head) + piece,
          true);
    }
    end_copy_group();
  };
  float* after = idle ? nullptr : segment.after(a, head, outputs);
  float segment_total = 0;
  copy(segment.begin, 0);
  int current = 0;
  for (int64_t token = segment.begin; token < segment.end; token += kChunk) {
    const int length = static_cast<int>(min(int64_t{kChunk}, segment.end - token));
    const bool more = token + kChunk < segment.end;
    if constexpr (outputs) {
#pragma unroll
      for (int i = 0; i < states / 8; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          bf16* to = &m.state[own][(16 * warp + row + 8 * half) * kStride + 8 * i + column];
          *reinterpret_cast<uint32_t*>(to) = packed(state[i][2 * half], state[i][2 * half + 1]);
        }
      }
    }
    if (stages > 1 && more) {
      copy(token + kChunk, current ^ 1);
      wait_for_copies<1>();
    } else {
      wait_for_copies<0>();
    }
    __syncthreads();
    const auto& stage = m.stage[current];
    const bf16* x = stage.x[own];
    const Scalars& scalars = stage.scalars[own];
    const float last = scalars.decay[kChunk - 1];
    segment_total += last;

    if constexpr (outputs) {
      // The warp's rows of C, for both products with them.
      constexpr bool kKeepC = states <= 128 && blocks == 1;
      uint32_t c[kKeepC ? states / 16 : 1][4];
      const auto row_of_c = [&](int k) -> uint32_t(&)[4] {
        uint32_t(&part)[4] = c[kKeepC ? k : 0];
        if (!kKeepC) load_matrices(part, part_of_a(stage.C, kStride, 16 * warp, 16 * k));
        return part;
      };
      if constexpr (kKeepC) {
#pragma unroll
        for (int k = 0; k < states / 16; ++k) load_matrices(c[k], part_of_a(stage.C, kStride, 16 * warp, 16 * k));
      }
      float y[kRows / 8][4] = {};
#pragma unroll
      for (int k = 0; k < states / 16; ++k) {
        const uint32_t(&left)[4] = row_of_c(k);
#pragma unroll
        for (int p = 0; p < kRows / 16; ++p) {
          uint32_t right[4];
          load_matrices(right, part_of_b(m.state[own], kStride, 16 * p, 16 * k));
          multiply(y[2 * p], left, right[0], right[1]);
          multiply(y[2 * p + 1], left, right[2], right[3]);
        }
      }
      const int t0 = 16 * warp + row, t1 = t0 + 8;
      const float decay0 = scalars.decay[t0], decay1 = scalars.decay[t1];
      const float inflow0 = exp2_fast(decay0), inflow1 = exp2_fast(decay1);
#pragma unroll
      for (auto& part : y) {
        part[0] *= inflow0;
        part[1] *= inflow0;
        part[2] *= inflow1;
        part[3] *= inflow1;
      }
#pragma unroll
      for (int block = 0; block < kChunk / 16; ++block) {
        if (block > warp) break;  // tokens after all of the warp's
        float scores[2][4] = {};
#pragma unroll
        for (int k = 0; k < states / 16; ++k) {
          const uint32_t(&left)[4] = row_of_c(k);
          uint32_t right[4];
          load_matrices(right, part_of_b(stage.B, kStride, 16 * block, 16 * k));
          multiply(scores[0], left, right[0], right[1]);
          multiply(scores[1], left, right[2], right[3]);
        }
        uint32_t mixed[4];
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          const int from = 16 * block + 8 * part + column;
          const float2 cs = *reinterpret_cast<const float2*>(&scalars.decay[from]);
          const float2 step = *reinterpret_cast<const float2*>(&scalars.dt[from]);
          // Only differences ≤ 0 count; what follows a token is left out, not multiplied by zero.
          const auto weighted = [&](float score, int t, int j, float decay, float before_it, float dt_of_it) {
            return j <= t ? score * exp2_fast(decay - before_it) * dt_of_it : 0;
          };
          mixed[2 * part] = packed(weighted(scores[part][0], t0, from, decay0, cs.x, step.x),
                                   weighted(scores[part][1], t0, from + 1, decay0, cs.y, step.y));
          mixed[2 * part + 1] = packed(weighted(scores[part][2], t1, from, decay1, cs.x, step.x),
                                       weighted(scores[part][3], t1, from + 1, decay1, cs.y, step.y));
        }
#pragma unroll
        for (int p = 0; p < kRows / 16; ++p) {
          uint32_t right[4];
          load_matrices_transposed(right, part_of_b_transposed(x, kRowStride, 16 * block, 16 * p));
          multiply(y[2 * p], mixed, right[0], right[1]);
          multiply(y[2 * p + 1], mixed, right[2], right[3]);
        }
      }
      bf16* staged = m.y[own] + 16 * warp * kRowStride;
#pragma unroll
      for (int i = 0; i < kRows / 8; ++i) {
        const int p = 8 * i + column;
        float2 D{head_skip, head_skip};
        if (a.D != nullptr && !a.D_per_head && p < rows) {
          D.x = a.skip_weight(head, first_row + p);
          D.y = p + 1 < rows ? a.skip_weight(head, first_row + p + 1) : 0;
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int t = row + 8 * half;
          const float2 input = unpacked(*reinterpret_cast<const uint32_t*>(&x[(16 * warp + t) * kRowStride + p]));
          *reinterpret_cast<uint32_t*>(&staged[t * kRowStride + p]) =
              packed(fmaf(D.x, input.x, y[i][2 * half]), fmaf(D.y, input.y, y[i][2 * half + 1]));
        }
      }
      __syncwarp();
      if (!idle) {
        const int count = min(16, length - 16 * warp);
        bf16* to = a.y + ((token + 16 * warp) * a.heads + head) * a.head_dim + first_row;
        const int64_t to_stride = a.heads * a.head_dim;
        if (a.wide_x) {
#pragma unroll
          for (int i = 0; i < 16 * kRows / 8 / kWarp; ++i) {
            const int t = (i * kWarp + lane) / (kRows / 8), p = (i * kWarp + lane) % (kRows / 8) * 8;
            if (t < count && p < rows) {
              *reinterpret_cast<uint4*>(to + t * to_stride + p) =
                  *reinterpret_cast<const uint4*>(&staged[t * kRowStride + p]);
            }
          }
        } else {
          for (int i = lane; i < 16 * kRows; i += kWarp) {
            const int t = i / kRows, p = i % kRows;
            if (t < count && p < rows) to[t * to_stride + p] = staged[t * kRowStride + p];
          }
        }
      }
      __syncwarp();
    }

    if (more || after != nullptr) {
      const float decay = exp2_fast(last);
#pragma unroll
      for (auto& part : state) {
#pragma unroll
        for (float& v : part) v *= decay;
      }
#pragma unroll
      for (int k = 0; k < kChunk / 16; ++k) {
        uint32_t left[4];
        load_matrices_transposed(left, part_of_a_transposed(x, kRowStride, 16 * k, 16 * warp));
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float2 w = *reinterpret_cast<const float2*>(&scalars.outflow[16 * k + 8 * half + column]);
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const float2 v = unpacked(left[2 * half + i]);
            left[2 * half + i] = packed(v.x * w.x, v.y * w.y);
          }
        }
#pragma unroll
        for (int n = 0; n < states / 16; ++n) {
          uint32_t right[4];
          load_matrices_transposed(right, part_of_b_transposed(stage.B, kStride, 16 * k, 16 * n));
          multiply(state[2 * n], left, right[0], right[1]);
          multiply(state[2 * n + 1], left, right[2], right[3]);
        }
      }
    }
    __syncthreads();  // the stage, the state and the scalars were read
    if (stages > 1) {
      current ^= 1;
    } else if (more) {
      copy(token + kChunk, 0);
    }
  }
  if (after == nullptr) return;
#pragma unroll
  for (int i = 0; i < states / 8; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int p = 16 * warp + row + j / 2 * 8, n = 8 * i + column + j % 2;
      if (p < rows && n < a.d_state) after[(first_row + p) * a.d_state + n] = state[i][j];
    }
  }
  if (!outputs && first_row == 0 && warp == 0 && lane == 0) {
    a.carry_decay[segment.carry * a.heads + head] = segment_total / kLog2e;
  }
}

template <int states, int units, int stages, int blocks, bool outputs>
void launch_walk(cudaStream_t stream, const Ssd<bf16>& a, int64_t segments) {
  constexpr int kBytes = sizeof(Memory<states, units, stages, outputs>);
  const int64_t per_group = a.heads / a.groups * ceil_div<int64_t>(a.head_dim, kRows);
  const int64_t unit_blocks = ceil_div<int64_t>(per_group, units) * a.groups;
  const auto kernel = walk<states, units, stages, blocks, outputs>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), "cudaFuncSetAttribute");
  kernel<<<static_cast<unsigned>(segments * unit_blocks), units * kWarpsOfUnit * kWarp, kBytes, stream>>>(a,
                                                                                                          unit_blocks);
}

}  // namespace

void ssd_scan_scalars(cudaStream_t stream, const Ssd<bf16>& a, int64_t chunks) {
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(chunks * a.heads, kScalarWarps));
  scalars_of_chunks<<<blocks, kScalarWarps * kWarp, 0, stream>>>(a, chunks);
}

void ssd_scan_tiles(cudaStream_t stream, const Ssd<bf16>& a, int64_t segments, bool outputs) {
  if (a.d_state <= 16) {
    outputs ? launch_walk<16, 2, 2, 1, true>(stream, a, segments)
            : launch_walk<16, 2, 2, 1, false>(stream, a, segments);
  } else if (a.d_state <= 64) {
    outputs ? launch_walk<64, 2, 2, 1, true>(stream, a, segments)
            : launch_walk<64, 2, 2, 1, false>(stream, a, segments);
  } else if (a.d_state <= 128) {
    // Measured on an H200 against one unit and three blocks, and two units and two blocks, without a second stage.
    outputs ? launch_walk<128, 2, 2, 1, true>(stream, a, segments)
            : launch_walk<128, 2, 2, 2, false>(stream, a, segments);
  } else {
    outputs ? launch_walk<256, 1, 1, 1, true>(stream, a, segments)
            : launch_walk<256, 1, 1, 1, false>(stream, a, segments);
  }
}

}  // namespace elapid::cuda
