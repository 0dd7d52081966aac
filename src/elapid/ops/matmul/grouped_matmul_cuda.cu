#include "elapid/cuda/elements.cuh"
#include "elapid/cuda/mma.cuh"
#include "elapid/ops/matmul/grouped_matmul.h"

// Weights are plain rows [out, in], one matrix a group, addresses in a table. How many rows a group has is known on the
// device alone, so the grid has as many row tiles as there can be, and a block finds its group by counting tiles.
//
//   in f32 arithmetic    each output is the operations of matmul_cuda.cu's lane_products, so that a row has its bits
//   few rows a group     tensor cores on 16 outputs × 8 rows, the weights straight from memory: reading them is all
//   many                 tensor cores on tiles in shared memory, copied three stages ahead

namespace elapid {
namespace {

using cuda::bf16, cuda::kAllLanes, cuda::kWarp;

struct Grouped {
  const int64_t *offsets, *addresses;
  int64_t groups, in, out, x_stride, y_stride;
  char* y;
  bool y_is_bf16;

  __device__ void put(int64_t row, int64_t column, float value) const {
    if (y_is_bf16) {
      reinterpret_cast<bf16*>(y)[row * y_stride + column] = __float2bfloat16_rn(value);
    } else {
      reinterpret_cast<float*>(y)[row * y_stride + column] = value;
    }
  }
};

// The `tile`-th tile of `height` rows, of one group each. Every warp of a block finds it for itself.
struct RowTile {
  int64_t group = -1, first = 0;
  int count = 0;  // rows; 0: there are not so many tiles

  __device__ RowTile(const Grouped& a, int64_t tile, int height) {
    const int lane = threadIdx.x % kWarp;
    int64_t before = 0;
    for (int64_t g0 = 0; g0 < a.groups; g0 += kWarp) {
      const int64_t g = g0 + lane;
      const int64_t begin = g < a.groups ? a.offsets[g] : 0, end = g < a.groups ? a.offsets[g + 1] : 0;
      const auto own = static_cast<int>((end - begin + height - 1) / height);
      int sum = own;
#pragma unroll
      for (int distance = 1; distance < kWarp; distance *= 2) {
        const int other = __shfl_up_sync(kAllLanes, sum, distance);
        if (lane >= distance) sum += other;
      }
      const int64_t last = before + sum;
      const unsigned found = __ballot_sync(kAllLanes, own > 0 && last - own <= tile && tile < last);
      if (found != 0) {
        const int at = __ffs(static_cast<int>(found)) - 1;
        const int64_t row = begin + (tile - (last - own)) * height;
        group = g0 + at;
        first = __shfl_sync(kAllLanes, row, at);
        count = static_cast<int>(min(int64_t{height}, __shfl_sync(kAllLanes, end, at) - first));
        return;
      }
      before += __shfl_sync(kAllLanes, sum, kWarp - 1);
    }
  }
};

// --- float32 -----------------------------------------------------------------------------------------------------

constexpr int kLaneWarps = 8, kLaneRows = 8, kLaneOuts = 4;

// One step of a sum over lanes: half of the values stay, the other half go to the lane across.
template <int N>
__device__ void fold(float (&values)[N], int lane, int across) {
  if constexpr (N > 1) {
    const bool upper = (lane & across) != 0;
    float half[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const float keep = upper ? values[i + N / 2] : values[i], give = upper ? values[i] : values[i + N / 2];
      half[i] = keep + __shfl_xor_sync(kAllLanes, give, across);
    }
    fold(half, lane, across / 2);
    values[0] = half[0];
  }
}

// V inputs from k on, as floats; beyond the end zero.
template <int V, class T>
__device__ void load_inputs(const T* row, int64_t k, int64_t in, bool aligned, float (&to)[V]) {
  if (aligned) {
    cuda::load_floats(row + k, to);
  } else {
#pragma unroll
    for (int v = 0; v < V; ++v) to[v] = k + v < in ? cuda::to_float(row[k + v]) : 0;
  }
}

template <class W, class X>
__global__ void __launch_bounds__(kLaneWarps* kWarp) lanes(Grouped a, const X* x, int slices, bool aligned) {
  constexpr int V = 16 / sizeof(W), kValues = kLaneRows * kLaneOuts;
  static_assert(kValues == kWarp);
  __shared__ float parts[kLaneWarps][kValues];
  const RowTile tile(a, blockIdx.x, kLaneRows);
  if (tile.count == 0) return;
  const W* weight = reinterpret_cast<const W*>(a.addresses[tile.group]);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, slice = warp % slices;
  const int64_t first_out = (int64_t{blockIdx.y} * (kLaneWarps / slices) + warp / slices) * kLaneOuts;
  const W* weights[kLaneOuts];
  const X* inputs[kLaneRows];
#pragma unroll
  for (int c = 0; c < kLaneOuts; ++c) weights[c] = weight + min(first_out + c, a.out - 1) * a.in;
#pragma unroll
  for (int r = 0; r < kLaneRows; ++r) inputs[r] = x + (tile.first + min(r, tile.count - 1)) * a.x_stride;
  float sums[kValues] = {};
  for (int64_t k = (static_cast<int64_t>(slice) * kWarp + lane) * V; k < a.in; k += slices * kWarp * V) {
    float w[kLaneOuts][V];
#pragma unroll
    for (int c = 0; c < kLaneOuts; ++c) load_inputs<V>(weights[c], k, a.in, aligned, w[c]);
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
      float values[V];
      load_inputs<V>(inputs[r], k, a.in, aligned, values);
#pragma unroll
      for (int c = 0; c < kLaneOuts; ++c) {
#pragma unroll
        for (int v = 0; v < V; ++v) sums[r * kLaneOuts + c] = fmaf(values[v], w[c][v], sums[r * kLaneOuts + c]);
      }
    }
  }
  fold(sums, lane, kWarp / 2);
  parts[warp][lane] = sums[0];
  __syncthreads();
  for (int i = threadIdx.x; i < kLaneWarps / slices * kValues; i += kLaneWarps * kWarp) {
    const int part = i / kValues, value = i % kValues;
    float sum = parts[part * slices][value];
    for (int s = 1; s < slices; ++s) sum += parts[part * slices + s][value];
    const int64_t out = (int64_t{blockIdx.y} * (kLaneWarps / slices) + part) * kLaneOuts + value % kLaneOuts;
    const int row = value / kLaneOuts;
    if (row < tile.count && out < a.out) a.put(tile.first + row, out, sum);
  }
}

// As matmul_cuda.cu has it: bits depend on it.
int slices_of(int64_t out) { return out >= 4096 ? 1 : out >= 2048 ? 2 : out >= 1024 ? 4 : 8; }

// --- Few rows of bf16 ------------------------------------------------------------------------------------------------

constexpr int kFewWarps = 8, kFewHeight = 8, kFewOuts = 16;

// Eight inputs from k on; beyond the end zero.
__device__ uint4 load_eight(const bf16* row, int64_t k, int64_t in, bool aligned, bool there) {
  if (!there) return {0, 0, 0, 0};
  if (aligned) return k < in ? __ldg(reinterpret_cast<const uint4*>(row + k)) : uint4{0, 0, 0, 0};
  cuda::Pack<bf16> pack;
#pragma unroll
  for (int i = 0; i < 8; ++i) pack.at[i] = k + i < in ? row[k + i] : __float2bfloat16_rn(0.0f);
  return *reinterpret_cast<const uint4*>(&pack);
}

// Lane 4 g + q has eight neighbouring inputs, from 8 q on, of outputs g and g + 8 and of row g: which inputs of a
// product a lane holds does not matter as long as both operands agree. Warps share the inputs.
__global__ void __launch_bounds__(kFewWarps* kWarp) few(Grouped a, const bf16* x, bool aligned) {
  constexpr int kDepth = 32, kAhead = 4;
  __shared__ float parts[kFewWarps][kFewHeight][kFewOuts + 1];
  const RowTile tile(a, blockIdx.y, kFewHeight);
  if (tile.count == 0) return;
  const bf16* weight = reinterpret_cast<const bf16*>(a.addresses[tile.group]);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, q = lane % 4;
  const int64_t first_out = int64_t{blockIdx.x} * kFewOuts;
  const bool low_there = first_out + g < a.out, high_there = first_out + g + 8 < a.out, row_there = g < tile.count;
  const bf16* low = weight + (first_out + g) * a.in;
  const bf16* high = low + 8 * a.in;
  const bf16* row = x + (tile.first + g) * a.x_stride;
  float sums[4] = {};
  for (int64_t base = int64_t{warp} * kDepth; base < a.in; base += kAhead * kFewWarps * kDepth) {
    uint4 w0[kAhead], w1[kAhead], v[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t k = base + int64_t{i} * kFewWarps * kDepth + q * 8;
      w0[i] = load_eight(low, k, a.in, aligned, low_there);
      w1[i] = load_eight(high, k, a.in, aligned, high_there);
      v[i] = load_eight(row, k, a.in, aligned, row_there);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const uint32_t first_half[4] = {w0[i].x, w1[i].x, w0[i].y, w1[i].y};
      const uint32_t second_half[4] = {w0[i].z, w1[i].z, w0[i].w, w1[i].w};
      cuda::multiply(sums, first_half, v[i].x, v[i].y);
      cuda::multiply(sums, second_half, v[i].z, v[i].w);
    }
  }
  parts[warp][2 * q][g] = sums[0];
  parts[warp][2 * q + 1][g] = sums[1];
  parts[warp][2 * q][g + 8] = sums[2];
  parts[warp][2 * q + 1][g + 8] = sums[3];
  __syncthreads();
  const int r = threadIdx.x / kFewOuts, out = threadIdx.x % kFewOuts;
  if (r >= tile.count || first_out + out >= a.out) return;
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kFewWarps; ++w) sum += parts[w][r][out];
  a.put(tile.first + r, first_out + out, sum);
}

// --- Many rows of bf16 -----------------------------------------------------------------------------------------------

constexpr int kManyOuts = 128, kDepth = 64, kStages = 3, kManyThreads = 256;
constexpr int kStride = kDepth + 8;  // elements of a row in shared memory

template <int height>
struct Stage {
  bf16 x[height * kStride], w[kManyOuts * kStride];
};

// Eight warps, two by four: each height / 2 rows × 32 outputs.
template <int height>
__global__ void __launch_bounds__(kManyThreads) many(Grouped a, const bf16* x, bool wide) {
  extern __shared__ __align__(16) char shared[];
  auto* stages = reinterpret_cast<Stage<height>*>(shared);
  const RowTile tile(a, blockIdx.y, height);
  if (tile.count == 0) return;
  const int64_t first_out = int64_t{blockIdx.x} * kManyOuts;
  const bf16* weight = reinterpret_cast<const bf16*>(a.addresses[tile.group]) + first_out * a.in;
  const bf16* rows = x + tile.first * a.x_stride;
  const int64_t steps = cuda::ceil_div<int64_t>(a.in, kDepth);
  const auto copy = [&](int64_t step) {
    if (step < steps) {
      Stage<height>& stage = stages[step % kStages];
      const int64_t k = step * kDepth;
      cuda::copy_tile<height, kDepth>(stage.x, kStride, rows + k, a.x_stride, tile.count, a.in - k, wide, threadIdx.x,
                                      kManyThreads);
      cuda::copy_tile<kManyOuts, kDepth>(stage.w, kStride, weight + k, a.in, a.out - first_out, a.in - k, wide,
                                         threadIdx.x, kManyThreads);
    }
    cuda::end_copy_group();
  };
  constexpr int kRowParts = height / 32;  // of sixteen rows, of a warp
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int first_row = warp / 4 * (height / 2), first_column = warp % 4 * 32;
  float sums[kRowParts][4][4] = {};
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) copy(i);
  for (int64_t step = 0; step < steps; ++step) {
    cuda::wait_for_copies<kStages - 2>();
    __syncthreads();  // everybody's copies are there, and everybody has left the stage that is filled next
    copy(step + kStages - 1);
    const Stage<height>& stage = stages[step % kStages];
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t left[kRowParts][4], right[2][4];
#pragma unroll
      for (int i = 0; i < kRowParts; ++i) {
        cuda::load_matrices(left[i], cuda::part_of_a(stage.x, kStride, first_row + 16 * i, k));
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        cuda::load_matrices(right[j], cuda::part_of_b(stage.w, kStride, first_column + 16 * j, k));
      }
#pragma unroll
      for (int i = 0; i < kRowParts; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          cuda::multiply(sums[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kRowParts; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = first_row + 16 * i + lane / 4 + e / 2 * 8;
        const int64_t out = first_out + first_column + 8 * j + lane % 4 * 2 + e % 2;
        if (row < tile.count && out < a.out) a.put(tile.first + row, out, sums[i][j][e]);
      }
    }
  }
}

// As many tiles of `height` rows as groups can have.
unsigned most_tiles(int64_t rows, int64_t groups, int height) {
  return static_cast<unsigned>(rows / height + std::min(groups, rows));
}

}  // namespace

void run(Cuda gpu, const GroupedMatmulForward& args) {
  const int64_t rows = args.x.rows(), in = args.x.cols(), out = args.y.cols(), groups = args.addresses.size();
  if (rows == 0 || out == 0) return;
  const cudaStream_t stream = cuda::stream_of(gpu);
  const Param& first = args.weights[0];
  Tensor x = args.x;
  if (args.rounded) {
    cuda::with_type(x.dtype, [&]<class T>() {
      const bool aligned = cuda::rows_aligned(x) && cuda::rows_aligned(args.rounded);
      cuda::for_elements(gpu, rows, in, aligned, cuda::Copy<T, bf16>{x, args.rounded}, "grouped_matmul");
    });
    x = args.rounded;
  }
  const Grouped a{cuda::data_of<const int64_t>(args.offsets),
                  cuda::data_of<const int64_t>(args.addresses),
                  groups,
                  in,
                  out,
                  x.row_stride(),
                  args.y.row_stride(),
                  cuda::data_of<char>(args.y),
                  args.y.dtype == DType::bf16};
  bool aligned = cuda::rows_aligned(x) && in % 8 == 0;
  for (int64_t g = 0; g < groups; ++g) aligned = aligned && cuda::rows_aligned(args.weights[g].value);
  if (first.arithmetic == Arithmetic::f32) {
    cuda::with_type(first.value.dtype, [&]<class W>() {
      cuda::with_type(x.dtype, [&]<class X>() {
        const int slices = slices_of(out);
        // Row tiles go where a grid may be largest: there is one for eight rows.
        const dim3 grid(most_tiles(rows, groups, kLaneRows),
                        static_cast<unsigned>(cuda::ceil_div<int64_t>(out, kLaneWarps / slices * kLaneOuts)));
        lanes<W, X><<<grid, kLaneWarps * kWarp, 0, stream>>>(a, cuda::data_of<const X>(x), slices, aligned);
      });
    });
    return cuda::check_launch("grouped_matmul");
  }
  const bf16* operand = cuda::data_of<const bf16>(x);
  if (rows <= groups * kFewHeight) {
    const dim3 grid(static_cast<unsigned>(cuda::ceil_div<int64_t>(out, kFewOuts)),
                    most_tiles(rows, groups, kFewHeight));
    few<<<grid, kFewWarps * kWarp, 0, stream>>>(a, operand, aligned);
  } else {
    const auto start = [&]<int height>() {
      constexpr int kBytes = kStages * sizeof(Stage<height>);
      cuda::check(cudaFuncSetAttribute(many<height>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
                  "cudaFuncSetAttribute");
      const dim3 grid(static_cast<unsigned>(cuda::ceil_div<int64_t>(out, kManyOuts)), most_tiles(rows, groups, height));
      many<height><<<grid, kManyThreads, kBytes, stream>>>(a, operand, aligned);
    };
    rows >= groups * 96 ? start.template operator()<128>() : start.template operator()<64>();
  }
  cuda::check_launch("grouped_matmul");
}

}  // namespace elapid
