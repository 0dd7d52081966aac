#include "elapid/cuda/elements.cuh"
#include "elapid/ops/matmul/matmul_cuda.h"

// Weights are plain rows [out, in]. Three ways to multiply with them:
//
//   in f32 arithmetic   `lane_products`: a warp takes a few outputs of a few rows of x. Lane l adds the products of
//                       inputs V l … V l + V − 1 of every 32 V, in order; lanes are added in a fixed tree, and slices
//                       of the inputs, whose number follows from the weight's shape, in order. An output is therefore
//                       the same operations whatever the number of rows.
//   few rows in bf16    `tile_products`: tensor cores on 16 outputs × 8 rows of x. A decode is bound by reading the
//                       weights; lanes read 16 bytes of them at a time and all rows share what was read.
//   many rows in bf16   cublasLt.

namespace elapid {
namespace {

using cuda::bf16;
using cuda::kWarp;

constexpr int kWarps = 8;  // of a block

struct Output {
  const float* bias;
  cuda::Rows<const char> add;
  cuda::Rows<char> y;
  int64_t rows, out;
  float alpha;
  bool in_bf16;

  explicit Output(const MatmulForward& a)
      : bias(cuda::data_of<const float>(a.bias)),
        add(a.add),
        y(a.y),
        rows(a.y.rows()),
        out(a.weight.shape[0]),
        alpha(a.alpha),
        in_bf16(a.y.dtype == DType::bf16) {}

  template <class T>
  __device__ void put(int64_t row, int64_t column, float value) const {
    if (add.data != nullptr) {
      value += cuda::to_float(reinterpret_cast<const T*>(add.data)[row * add.stride + column]);
    }
    reinterpret_cast<T*>(y.data)[row * y.stride + column] = cuda::from_float<T>(value);
  }
  // Output `column` of x's row `row`, where both exist, has this sum of products.
  __device__ void finish(int64_t row, int64_t column, float sum) const {
    if (row >= rows || column >= out) return;
    // Each operation rounds on its own, in every kernel.
    const float value = __fmul_rn(alpha, bias != nullptr ? __fadd_rn(sum, bias[column]) : sum);
    in_bf16 ? put<bf16>(row, column, value) : put<float>(row, column, value);
  }
};

// V elements as floats, from index k of a row of `in`; beyond its end zero.
template <int V, bool aligned, class T>
__device__ void load_inputs(const T* row, int64_t k, int64_t in, float (&to)[V]) {
  if constexpr (aligned) {
    cuda::load_floats(row + k, to);
  } else {
#pragma unroll
    for (int v = 0; v < V; ++v) to[v] = k + v < in ? cuda::to_float(row[k + v]) : 0;
  }
}

// One step of a sum over lanes: half of the values stay, the other half go to the lane across.
template <int N>
__device__ void fold(float (&values)[N], int lane, int across) {
  if constexpr (N > 1) {
    const bool upper = lane & across;
    float half[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const float keep = upper ? values[i + N / 2] : values[i], give = upper ? values[i] : values[i + N / 2];
      half[i] = keep + __shfl_xor_sync(cuda::kAllLanes, give, across);
    }
    fold(half, lane, across / 2);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) values[i] = half[i];
  } else {
    for (; across > 0; across /= 2) values[0] += __shfl_xor_sync(cuda::kAllLanes, values[0], across);
  }
}

template <class W, class X>
struct LaneProducts {
  const W* weight;
  int64_t weight_stride;
  const X* x;
  int64_t x_stride, in;
  int slices;  // warps that share the inputs of an output; divides kWarps
  Output output;
};

// A warp: R rows × C outputs, R · C a power of two up to 32.
template <int R, int C, bool aligned, class W, class X>
__global__ void __launch_bounds__(kWarps* kWarp) lane_products(LaneProducts<W, X> a) {
  constexpr int V = 16 / sizeof(W), kValues = R * C;
  __shared__ float parts[kWarps][kValues];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, slice = warp % a.slices;
  const int64_t first_out = (static_cast<int64_t>(blockIdx.x) * (kWarps / a.slices) + warp / a.slices) * C;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * R;
  const W* weights[C];
  const X* inputs[R];
#pragma unroll
  for (int c = 0; c < C; ++c) weights[c] = a.weight + min(first_out + c, a.output.out - 1) * a.weight_stride;
#pragma unroll
  for (int r = 0; r < R; ++r) inputs[r] = a.x + min(first_row + r, a.output.rows - 1) * a.x_stride;
  float sums[kValues] = {};
  for (int64_t k = (static_cast<int64_t>(slice) * kWarp + lane) * V; k < a.in; k += a.slices * kWarp * V) {
    float w[C][V];
#pragma unroll
    for (int c = 0; c < C; ++c) load_inputs<V, aligned>(weights[c], k, a.in, w[c]);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      float x[V];
      load_inputs<V, aligned>(inputs[r], k, a.in, x);
#pragma unroll
      for (int c = 0; c < C; ++c) {
#pragma unroll
        for (int v = 0; v < V; ++v) sums[r * C + c] = fmaf(x[v], w[c][v], sums[r * C + c]);
      }
    }
  }
  fold(sums, lane, kWarp / 2);
  // Value i is now where the lane's leading bits are i; the lanes beyond hold it as well.
  constexpr int kLanesEach = kWarp / kValues;
  if (lane % kLanesEach == 0) parts[warp][lane / kLanesEach] = sums[0];
  __syncthreads();
  for (int i = threadIdx.x; i < kWarps / a.slices * kValues; i += kWarps * kWarp) {
    const int group = i / kValues, value = i % kValues;
    float sum = parts[group * a.slices][value];
    for (int s = 1; s < a.slices; ++s) sum += parts[group * a.slices + s][value];
    const int64_t group_out = (static_cast<int64_t>(blockIdx.x) * (kWarps / a.slices) + group) * C;
    a.output.finish(first_row + value / C, group_out + value % C, sum);
  }
}

// Enough warps to keep the memory busy with one row of x.
int slices_of(int64_t out) { return out >= 4096 ? 1 : out >= 2048 ? 2 : out >= 1024 ? 4 : 8; }

void multiply_by_lanes(Cuda gpu, const MatmulForward& a) {
  const int64_t in = a.x.cols(), out = a.weight.shape[0], rows = a.x.rows();
  cuda::with_type(a.weight.dtype, [&]<class W>() {
    cuda::with_type(a.x.dtype, [&]<class X>() {
      const LaneProducts<W, X> args{cuda::data_of<const W>(a.weight),
                                    a.weight.row_stride(),
                                    cuda::data_of<const X>(a.x),
                                    a.x.row_stride(),
                                    in,
                                    slices_of(out),
                                    Output(a)};
      const bool aligned = cuda::rows_aligned(a.weight) && cuda::rows_aligned(a.x) && in % 8 == 0;
      const auto start = [&]<int R, int C>() {
        const int64_t outs = kWarps / args.slices * C;
        // The rows of a group read the same weights: those come from the second-level cache.
        constexpr int64_t kMostGroups = 65535;
        for (int64_t row = 0; row < rows; row += kMostGroups * R) {
          LaneProducts<W, X> part = args;
          const int64_t count = std::min(rows - row, kMostGroups * R);
          const int64_t size = size_of(a.y.dtype);
          part.x += row * part.x_stride;
          part.output.rows = count;
          part.output.y.data += row * part.output.y.stride * size;
          if (part.output.add.data != nullptr) part.output.add.data += row * part.output.add.stride * size;
          const dim3 grid(static_cast<unsigned>(cuda::ceil_div(out, outs)),
                          static_cast<unsigned>(cuda::ceil_div(count, int64_t{R})));
          if (aligned) {
            lane_products<R, C, true><<<grid, kWarps * kWarp, 0, cuda::stream_of(gpu)>>>(part);
          } else {
            lane_products<R, C, false><<<grid, kWarps * kWarp, 0, cuda::stream_of(gpu)>>>(part);
          }
        }
      };
      rows == 1 ? start.template operator()<1, 2>() : start.template operator()<8, 4>();
    });
  });
  cuda::check_launch("matmul");
}

struct TileProducts {
  const bf16* weight;
  int64_t weight_stride;
  const bf16* x;
  int64_t x_stride, in;
  Output output;
};

// c[16 outputs, 8 rows] += a[16 outputs, 16 inputs] · b[16 inputs, 8 rows].
__device__ inline void multiply_tile(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                     uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Eight inputs from k on; beyond the end zero.
template <bool aligned, bool streamed>
__device__ uint4 load_eight(const bf16* row, int64_t k, int64_t in) {
  if constexpr (aligned) {
    if (k >= in) return {0, 0, 0, 0};
    if constexpr (streamed) {
      return __ldcs(reinterpret_cast<const uint4*>(row + k));
    } else {
      return *reinterpret_cast<const uint4*>(row + k);
    }
  } else {
    cuda::Pack<bf16> pack;
#pragma unroll
    for (int i = 0; i < 8; ++i) pack.at[i] = k + i < in ? row[k + i] : __float2bfloat16_rn(0);
    return *reinterpret_cast<const uint4*>(&pack);
  }
}

// A block: 16 outputs of 8 · kTiles rows; its warps take every kWarps-th 32 inputs. Which inputs of a tile a lane holds
// does not matter as long as both operands agree: lane 4 g + q takes the eight inputs from 8 q on, of outputs g and
// g + 8 and of row g, two for each half of two products.
template <int kTiles, bool aligned>
__global__ void __launch_bounds__(kWarps* kWarp) tile_products(TileProducts a) {
  constexpr int kDepth = 32, kOuts = 16, kRows = 8, kAhead = 4;
  __shared__ float parts[kWarps][kTiles * kRows][kOuts + 1];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, q = lane % 4;
  const int64_t first_out = static_cast<int64_t>(blockIdx.x) * kOuts;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kTiles * kRows;
  const bf16* low = a.weight + min(first_out + g, a.output.out - 1) * a.weight_stride;
  const bf16* high = a.weight + min(first_out + g + 8, a.output.out - 1) * a.weight_stride;
  const bf16* inputs[kTiles];
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    inputs[t] = a.x + min(first_row + t * kRows + g, a.output.rows - 1) * a.x_stride;
  }
  float sums[kTiles][4] = {};
  for (int64_t base = static_cast<int64_t>(warp) * kDepth; base < a.in; base += kAhead * kWarps * kDepth) {
    uint4 w0[kAhead], w1[kAhead], x[kAhead][kTiles];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t k = base + static_cast<int64_t>(i) * kWarps * kDepth + q * 8;
      w0[i] = load_eight<aligned, true>(low, k, a.in);
      w1[i] = load_eight<aligned, true>(high, k, a.in);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) x[i][t] = load_eight<aligned, false>(inputs[t], k, a.in);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        multiply_tile(sums[t], w0[i].x, w1[i].x, w0[i].y, w1[i].y, x[i][t].x, x[i][t].y);
        multiply_tile(sums[t], w0[i].z, w1[i].z, w0[i].w, w1[i].w, x[i][t].z, x[i][t].w);
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    float(&row)[kOuts + 1] = parts[warp][t * kRows + 2 * q];
    float(&next)[kOuts + 1] = parts[warp][t * kRows + 2 * q + 1];
    row[g] = sums[t][0];
    next[g] = sums[t][1];
    row[g + 8] = sums[t][2];
    next[g + 8] = sums[t][3];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTiles * kRows * kOuts; i += kWarps * kWarp) {
    const int row = i / kOuts, out = i % kOuts;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += parts[w][row][out];
    a.output.finish(first_row + row, first_out + out, sum);
  }
}

void multiply_by_tiles(Cuda gpu, const MatmulForward& a) {
  const int64_t in = a.x.cols(), out = a.weight.shape[0], rows = a.x.rows();
  const TileProducts args{cuda::data_of<const bf16>(a.weight),
                          a.weight.row_stride(),
                          cuda::data_of<const bf16>(a.x),
                          a.x.row_stride(),
                          in,
                          Output(a)};
  const bool aligned = cuda::rows_aligned(a.weight) && cuda::rows_aligned(a.x) && in % 8 == 0;
  const auto start = [&]<int kTiles>() {
    const dim3 grid(static_cast<unsigned>(cuda::ceil_div(out, int64_t{16})),
                    static_cast<unsigned>(cuda::ceil_div(rows, int64_t{8 * kTiles})));
    if (aligned) {
      tile_products<kTiles, true><<<grid, kWarps * kWarp, 0, cuda::stream_of(gpu)>>>(args);
    } else {
      tile_products<kTiles, false><<<grid, kWarps * kWarp, 0, cuda::stream_of(gpu)>>>(args);
    }
  };
  rows <= 8 ? start.template operator()<1>() : start.template operator()<2>();
  cuda::check_launch("matmul");
}

// y = sums + alpha · bias + add; bias or add may be absent, and y be the sums.
template <class T>
struct AddRest {
  cuda::Rows<const float> sums;
  const float* bias;
  cuda::Rows<const T> add;
  cuda::Rows<T> y;
  float alpha;

  template <int N>
  __device__ void run(int64_t row, int64_t column) const {
    float values[N], added[N];
    cuda::load_run(sums.at(row, column), values);
    for (int i = 0; bias != nullptr && i < N; ++i) values[i] = fmaf(alpha, bias[column + i], values[i]);
    if (add.data != nullptr) {
      cuda::load_run(add.at(row, column), added);
      for (int i = 0; i < N; ++i) values[i] += added[i];
    }
    cuda::store_run(y.at(row, column), values);
  }
};

}  // namespace

void run(Cuda gpu, const MatmulForward& given) {
  if (given.y.size() == 0) return;
  if (given.arithmetic == Arithmetic::f32) return multiply_by_lanes(gpu, given);
  MatmulForward a = given;
  if (a.rounded) {
    const bool aligned = cuda::rows_aligned(a.x) && cuda::rows_aligned(a.rounded);
    cuda::with_type(a.x.dtype, [&]<class T>() {
      cuda::for_elements(gpu, a.x.rows(), a.x.cols(), aligned, cuda::Copy<T, bf16>{a.x, a.rounded}, "matmul");
    });
    a.x = a.rounded;
  }
  const bool aligned = cuda::rows_aligned(a.weight) && cuda::rows_aligned(a.x) && a.x.cols() % 8 == 0;
  MatmulForward sums = a;
  if (a.unrounded) {
    sums.y = a.unrounded;
    sums.add = {};
  }
  if (a.x.rows() <= kCudaFewRows || !aligned || !library_matmul(gpu, sums)) return multiply_by_tiles(gpu, a);
  if (!a.bias && !a.unrounded) return;
  if (!a.unrounded) a.add = {};  // is in the sums
  const bool rows = cuda::rows_aligned(sums.y) && cuda::rows_aligned(a.add) && cuda::rows_aligned(a.y);
  cuda::with_type(a.y.dtype, [&]<class T>() {
    cuda::for_elements(gpu, a.y.rows(), a.y.cols(), rows,
                       AddRest<T>{sums.y, cuda::data_of<const float>(a.bias), a.add, a.y, a.alpha}, "matmul");
  });
}

}  // namespace elapid
