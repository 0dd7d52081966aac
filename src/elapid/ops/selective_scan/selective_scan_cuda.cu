#include "elapid/cuda/math.cuh"
#include "elapid/cuda/mma.cuh"
#include "elapid/ops/selective_scan/selective_scan.h"

// A channel's states lie in the registers of `lanes` neighbouring lanes, and a block walks its sequence token by token:
// one exponential, two products and two fused multiply-adds a state. Thus every element is the same operations in the
// same order for any length, and there is no second pass over the exponentials, which are what limits a scan whose
// operands come at the memory's rate.
//
// States are dealt out in shares of N neighbours. A lane has one of them, or two, half of all apart: the sum over a
// channel's states adds shares as a tree does whose first step is these two, so both give the same bits. One share
// makes more warps, for a sequence alone; two need fewer instructions.

namespace elapid {
namespace {

using cuda::Floats, cuda::from_float, cuda::to_float;

constexpr int kThreads = 128;
constexpr int kTile = 32;  // tokens whose operands lie in shared memory together

template <class T>
struct Scan {
  const T *x, *dt, *B, *C, *z;
  T* y;
  const float *A, *D, *dt_bias;
  float* state;
  const int64_t *offsets, *slots;
  int64_t x_stride, dt_stride, B_stride, C_stride, z_stride, A_stride;
  int64_t sequences, channels, groups, d_state;
  int64_t tiles;       // of channels, in a group
  bool wide;           // rows of x, dt, z and y may be read by sixteen bytes from every tile's first channel on
  bool wide_operands;  // rows of B and C
  bool wide_state;
};

// Which channels a block has: a tile of one group's.
struct Place {
  int64_t group, first, end;

  template <class T>
  __device__ Place(const Scan<T>& a, int64_t block, int width) {
    const int64_t tile = block % a.tiles, per_group = a.channels / a.groups;
    group = block / a.tiles % a.groups;
    first = group * per_group + tile * width;
    end = (group + 1) * per_group;
  }
};

__device__ float softplus_of(float raw, float bias) { return cuda::softplus_short(raw + bias); }

// Of a token: D · x beside the sum over states, and the gate.
template <class T>
__device__ float finish(float sum, float D, float x, bool gated, float z) {
  const float y = fmaf(D, x, sum);
  return gated ? y * cuda::silu_short(z) : y;
}

// One token's states of a lane. Returns their part of y's sum.
template <int N>
__device__ float advance(float (&h)[N], const float (&A)[N], float dt, float weighted_x, const float (&B)[N],
                         const float (&C)[N], int states) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float decay = cuda::exp2_fast(__fmul_rn(dt, A[i]));
    h[i] = fmaf(decay, h[i], __fmul_rn(weighted_x, B[i]));
    // A state that is not there adds nothing, even when x is infinite.
    if (i < states) sum = fmaf(C[i], h[i], sum);
  }
  return sum;
}

// A share: states `first` … of channel c. kFull: all N of them are there.
template <int N, bool kFull>
struct Share {
  float A[N], h[N];
  int states;  // how many are there

  __device__ Share() {}
  template <class T>
  __device__ Share(const Scan<T>& a, int64_t c, int first, bool real, int64_t slot) {
    states = kFull ? N : real ? max(0, min(N, static_cast<int>(a.d_state) - first)) : 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      A[i] = real && i < states ? a.A[c * a.A_stride + first + i] : 0;
      h[i] = 0;
    }
    if (slot < 0 || !real) return;
    const float* from = a.state + (slot * a.channels + c) * a.d_state + first;
    if (kFull && a.wide_state) {
      const Floats<N> all = *reinterpret_cast<const Floats<N>*>(from);
#pragma unroll
      for (int i = 0; i < N; ++i) h[i] = all.at[i];
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (i < states) h[i] = from[i];
      }
    }
  }
  template <class T>
  __device__ void keep(const Scan<T>& a, int64_t c, int first, bool real, int64_t slot) const {
    if (slot < 0 || !real) return;
    float* to = a.state + (slot * a.channels + c) * a.d_state + first;
    if (kFull && a.wide_state) {
      Floats<N> all;
#pragma unroll
      for (int i = 0; i < N; ++i) all.at[i] = h[i];
      *reinterpret_cast<Floats<N>*>(to) = all;
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (i < states) to[i] = h[i];
      }
    }
  }
};

// Shared memory of a block that walks.
template <class T, int channels, int shares, int N>
struct Memory {
  static constexpr int kStages = shares * N <= 64 ? 3 : 2;  // tiles: one is computed, the others are on their way
  struct alignas(16) Stage {
    T x[kTile][channels], dt[kTile][channels], z[kTile][channels], B[kTile][shares * N], C[kTile][shares * N];
  } stages[kStages];
  float operands[kTile][shares][2 * N];  // B and C of a share
  float2 weights[kTile][channels];       // dt · log2 e, dt · x
  float sums[kTile][channels + 1];
};

// `shares` of N states, together a power of two of at least eight; `folded` of them in a lane.
template <class T, int shares, int folded, int N, bool kFull>
__global__ void __launch_bounds__(kThreads, N == 2 ? 3 : 1) walk(Scan<T> a) {
  constexpr int lanes = shares / folded, kChannels = kThreads / lanes, kStates = shares * N;
  constexpr int kTogether = lanes < 8 ? lanes : 8;  // tokens whose sums over lanes are taken together
  static_assert(kThreads % kChannels == 0 && kTile * kChannels % kThreads == 0);
  extern __shared__ __align__(16) char shared[];
  using M = Memory<T, kChannels, shares, N>;
  constexpr int kStages = M::kStages;
  M& m = *reinterpret_cast<M*>(shared);

  const Place place(a, blockIdx.x, kChannels);
  const int64_t s = blockIdx.x / (a.tiles * a.groups), begin = a.offsets[s], end = a.offsets[s + 1], slot = a.slots[s];
  if (begin == end) return;
  const int left = static_cast<int>(min(int64_t{kChannels}, place.end - place.first));
  const int states = static_cast<int>(a.d_state);
  const auto stage_of = [&](int64_t tile) -> typename M::Stage& { return m.stages[(tile - begin) / kTile % kStages]; };
  const auto copy = [&](int64_t tile) {
    if (tile < end) {
      auto& stage = stage_of(tile);
      const int64_t tokens = end - tile, at = place.group * a.d_state;
      const auto rows = [&](T* to, const T* from, int64_t stride) {
        cuda::copy_rows<kTile, kChannels>(to, from + tile * stride + place.first, stride, tokens, left, a.wide,
                                          threadIdx.x, kThreads);
      };
      rows(&stage.x[0][0], a.x, a.x_stride);
      rows(&stage.dt[0][0], a.dt, a.dt_stride);
      if (a.z != nullptr) rows(&stage.z[0][0], a.z, a.z_stride);
      cuda::copy_rows<kTile, kStates>(&stage.B[0][0], a.B + tile * a.B_stride + at, a.B_stride, tokens, states,
                                      a.wide_operands, threadIdx.x, kThreads);
      cuda::copy_rows<kTile, kStates>(&stage.C[0][0], a.C + tile * a.C_stride + at, a.C_stride, tokens, states,
                                      a.wide_operands, threadIdx.x, kThreads);
    }
    cuda::end_copy_group();
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) copy(begin + i * kTile);

  // While operands are prepared and outputs finished, a thread has one channel, of every kThreads / kChannels-th token:
  // neighbouring lanes have neighbouring words.
  const int column = threadIdx.x % kChannels, first_row = threadIdx.x / kChannels;
  const float D = a.D != nullptr && column < left ? a.D[place.first + column] : 0;
  const float bias = a.dt_bias != nullptr && column < left ? a.dt_bias[place.first + column] : 0;
  const int channel = threadIdx.x / lanes, part = threadIdx.x % lanes;
  const int64_t c = place.first + channel;
  const bool real = channel < left;
  Share<N, kFull> own[folded];
#pragma unroll
  for (int f = 0; f < folded; ++f) own[f] = Share<N, kFull>(a, c, (part + f * lanes) * N, real, slot);

  const auto finish_tile = [&](int64_t tile) {
    const auto& stage = stage_of(tile);
    const int tokens = column < left ? static_cast<int>(min(int64_t{kTile}, end - tile)) : 0;
    T* y = a.y + tile * a.channels + place.first + column;
#pragma unroll 4
    for (int row = first_row; row < tokens; row += kThreads / kChannels) {
      const float gate = a.z != nullptr ? to_float(stage.z[row][column]) : 0;
      y[row * a.channels] =
          from_float<T>(finish<T>(m.sums[row][column], D, to_float(stage.x[row][column]), a.z != nullptr, gate));
    }
  };
  for (int64_t tile = begin; tile < end; tile += kTile) {
    const int tokens = static_cast<int>(min(int64_t{kTile}, end - tile));
    cuda::wait_for_copies<kStages - 2>();
    __syncthreads();  // the tile is there, and the sums of the one before
    if (tile > begin) finish_tile(tile - kTile);
    const auto& stage = stage_of(tile);
#pragma unroll 4
    for (int row = first_row; row < tokens; row += kThreads / kChannels) {
      const float step = column < left ? softplus_of(to_float(stage.dt[row][column]), bias) : 0;
      m.weights[row][column] = make_float2(step * cuda::kLog2e, step * to_float(stage.x[row][column]));
    }
    for (int i = threadIdx.x; i < tokens * 2 * kStates; i += kThreads) {
      const int row = i / (2 * kStates), word = i % (2 * kStates), share = word / (2 * N), n = word % (2 * N);
      m.operands[row][share][n] = to_float(n < N ? stage.B[row][share * N + n] : stage.C[row][share * N + n - N]);
    }
    __syncthreads();
    copy(tile + (kStages - 1) * kTile);  // into the stage that finish_tile() has left
#pragma unroll 2
    for (int t0 = 0; t0 < tokens; t0 += kTogether) {
      float v[kTogether];
      const auto token = [&](int j) {
        const float2 w = m.weights[t0 + j][channel];
        float part_of[folded];
#pragma unroll
        for (int f = 0; f < folded; ++f) {
          const auto& both = *reinterpret_cast<const Floats<2 * N>*>(&m.operands[t0 + j][part + f * lanes][0]);
          float B[N], C[N];
#pragma unroll
          for (int i = 0; i < N; ++i) {
            B[i] = both.at[i];
            C[i] = both.at[N + i];
          }
          part_of[f] = advance<N>(own[f].h, own[f].A, w.x, w.y, B, C, kFull ? N : own[f].states);
        }
        v[j] = folded == 1 ? part_of[0] : part_of[0] + part_of[folded - 1];
      };
      if (t0 + kTogether <= tokens) {
#pragma unroll
        for (int j = 0; j < kTogether; ++j) token(j);
      } else {
#pragma unroll
        for (int j = 0; j < kTogether; ++j) {
          v[j] = 0;
          if (t0 + j < tokens) token(j);
        }
      }
      // Sums over lanes, halves first. In the last rounds lanes share the tokens out, until each has one.
#pragma unroll
      for (int lane = lanes / 2; lane >= kTogether; lane /= 2) {
#pragma unroll
        for (int j = 0; j < kTogether; ++j) v[j] += __shfl_xor_sync(cuda::kAllLanes, v[j], lane);
      }
#pragma unroll
      for (int half = kTogether / 2; half > 0; half /= 2) {
        const bool upper = (part & half) != 0;
#pragma unroll
        for (int j = 0; j < half; ++j) {
          const float kept = upper ? v[j + half] : v[j], sent = upper ? v[j] : v[j + half];
          v[j] = kept + __shfl_xor_sync(cuda::kAllLanes, sent, half);
        }
      }
      if (part < kTogether) m.sums[t0 + part][channel] = v[0];
    }
  }
  __syncthreads();
  finish_tile(begin + (end - begin - 1) / kTile * kTile);
#pragma unroll
  for (int f = 0; f < folded; ++f) own[f].keep(a, c, (part + f * lanes) * N, real, slot);
}

// At most one token a sequence: the state is read and written once. A thread has the same share of the states of
// `together` sequences, whose loads are in flight at once; A is read once for them. What a channel computes once, its
// time step and its gate, lanes do for one sequence each.
template <class T, int lanes, int N, bool kFull, int together>
__global__ void __launch_bounds__(kThreads) step(Scan<T> a) {
  static_assert(together <= lanes);
  const Place place(a, blockIdx.x, kThreads / lanes);
  const int64_t c = place.first + threadIdx.x / lanes;
  const bool real = c < place.end;
  const int part = threadIdx.x % lanes, lane = threadIdx.x % cuda::kWarp, first_lane = lane - part;
  const float D = a.D != nullptr && real ? a.D[c] : 0, bias = a.dt_bias != nullptr && real ? a.dt_bias[c] : 0;
  for (int64_t s0 = int64_t{blockIdx.y} * together; s0 < a.sequences; s0 += int64_t{gridDim.y} * together) {
    // Of sequence s0 + part, for lanes that have one.
    int64_t token = -1, slot = -1;
    if (part < together && s0 + part < a.sequences && a.offsets[s0 + part + 1] > a.offsets[s0 + part]) {
      token = a.offsets[s0 + part];
      slot = a.slots[s0 + part];
    }
    float x = 0, dt = 0, z = 0;
    if (token >= 0 && real) {
      x = to_float(a.x[token * a.x_stride + c]);
      dt = to_float(a.dt[token * a.dt_stride + c]);
      if (a.z != nullptr) z = to_float(a.z[token * a.z_stride + c]);
    }
    Share<N, kFull> own[together];
    float B[together][N], C[together][N];
    int64_t slots[together];
    const int64_t at = place.group * a.d_state + part * N;
#pragma unroll
    for (int r = 0; r < together; ++r) {
      const int64_t t = __shfl_sync(cuda::kAllLanes, token, first_lane + r);
      slots[r] = __shfl_sync(cuda::kAllLanes, slot, first_lane + r);
      const bool there = real && t >= 0;
      own[r] = Share<N, kFull>(a, c, part * N, there, slots[r]);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const bool has = there && i < own[r].states;
        B[r][i] = has ? to_float(a.B[t * a.B_stride + at + i]) : 0;
        C[r][i] = has ? to_float(a.C[t * a.C_stride + at + i]) : 0;
      }
    }
    const float w = softplus_of(dt, bias), scaled = w * cuda::kLog2e, weighted = w * x;
    float sums[together];
#pragma unroll
    for (int r = 0; r < together; ++r) {
      const float own_scaled = __shfl_sync(cuda::kAllLanes, scaled, first_lane + r);
      const float own_weighted = __shfl_sync(cuda::kAllLanes, weighted, first_lane + r);
      sums[r] = advance<N>(own[r].h, own[r].A, own_scaled, own_weighted, B[r], C[r], kFull ? N : own[r].states);
      own[r].keep(a, c, part * N, real, slots[r]);
    }
    float sum = 0;
#pragma unroll
    for (int r = 0; r < together; ++r) {
#pragma unroll
      for (int across = lanes / 2; across > 0; across /= 2) {
        sums[r] += __shfl_xor_sync(cuda::kAllLanes, sums[r], across);
      }
      if (part == r) sum = sums[r];
    }
    if (token >= 0 && real) a.y[token * a.channels + c] = from_float<T>(finish<T>(sum, D, x, a.z != nullptr, z));
  }
}

template <class T, int shares, int folded, int N>
void launch_walk(cudaStream_t stream, Scan<T> a) {
  constexpr int kChannels = kThreads / (shares / folded), kStates = shares * N;
  constexpr int kBytes = sizeof(Memory<T, kChannels, shares, N>);
  a.tiles = cuda::ceil_div<int64_t>(a.channels / a.groups, kChannels);
  a.wide = a.wide && kChannels * sizeof(T) % 16 == 0;
  const auto kernel = a.d_state == kStates ? walk<T, shares, folded, N, true> : walk<T, shares, folded, N, false>;
  cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
              "cudaFuncSetAttribute");
  kernel<<<static_cast<unsigned>(a.tiles * a.groups * a.sequences), kThreads, kBytes, stream>>>(a);
}

template <class T, int shares, int N>
void launch_scan(cudaStream_t stream, Scan<T> a, bool single) {
  constexpr int kTogetherSteps = 4;
  a.wide_state = reinterpret_cast<uintptr_t>(a.state) % sizeof(Floats<N>) == 0;
  const bool full = a.d_state == shares * N;
  if (!single) {
    // Two shares a lane from four warps a scheduler of a large device on.
    if (shares == 8 && N == 2 && a.channels * a.sequences >= 132 * 4 * 4 * 8) {
      return launch_walk < T, shares, shares == 8 && N == 2 ? 2 : 1, N > (stream, a);
    }
    return launch_walk<T, shares, 1, N>(stream, a);
  }
  a.tiles = cuda::ceil_div<int64_t>(a.channels / a.groups, kThreads / shares);
  const bool several = a.sequences >= kTogetherSteps && N <= 4;
  const int64_t rows = several ? cuda::ceil_div<int64_t>(a.sequences, kTogetherSteps) : a.sequences;
  const dim3 grid(static_cast<unsigned>(a.tiles * a.groups), static_cast<unsigned>(rows < 65535 ? rows : 65535));
  if (several) {
    full ? step<T, shares, N, true, kTogetherSteps><<<grid, kThreads, 0, stream>>>(a)
         : step<T, shares, N, false, kTogetherSteps><<<grid, kThreads, 0, stream>>>(a);
  } else {
    full ? step<T, shares, N, true, 1><<<grid, kThreads, 0, stream>>>(a)
         : step<T, shares, N, false, 1><<<grid, kThreads, 0, stream>>>(a);
  }
}

}  // namespace

void run(Cuda gpu, const SelectiveScanForward& a) {
  const SelectiveScan& in = a.in;
  if (in.x.rows() == 0 || in.x.cols() == 0) return;
  cuda::with_type(in.x.dtype, [&]<class T>() {
    Scan<T> scan{};
    scan.x = cuda::data_of<T>(in.x);
    scan.dt = cuda::data_of<T>(in.dt);
    scan.B = cuda::data_of<T>(in.B);
    scan.C = cuda::data_of<T>(in.C);
    scan.z = cuda::data_of<T>(in.z);
    scan.y = cuda::data_of<T>(a.y);
    scan.A = cuda::data_of<float>(in.A);
    scan.D = cuda::data_of<float>(in.D);
    scan.dt_bias = cuda::data_of<float>(in.dt_bias);
    scan.state = cuda::data_of<float>(a.state);
    scan.offsets = cuda::data_of<int64_t>(a.offsets);
    scan.slots = cuda::data_of<int64_t>(a.slots);
    scan.x_stride = in.x.row_stride();
    scan.dt_stride = in.dt.row_stride();
    scan.B_stride = in.B.row_stride();
    scan.C_stride = in.C.row_stride();
    scan.z_stride = in.z.row_stride();
    scan.A_stride = in.A.row_stride();
    scan.sequences = a.slots.size();
    scan.channels = in.x.cols();
    scan.groups = in.groups;
    scan.d_state = a.d_state;
    constexpr int64_t kPack = cuda::Pack<T>::kSize;
    scan.wide = in.x.cols() / in.groups % kPack == 0 && cuda::rows_aligned(in.x) && cuda::rows_aligned(in.dt) &&
                cuda::rows_aligned(in.z) && cuda::rows_aligned(a.y);
    scan.wide_operands = a.d_state % kPack == 0 && cuda::rows_aligned(in.B) && cuda::rows_aligned(in.C);
    const cudaStream_t stream = cuda::stream_of(gpu);
    const bool single = a.longest <= 1;
    if (a.d_state <= 16) {
      launch_scan<T, 8, 2>(stream, scan, single);
    } else if (a.d_state <= 32) {
      launch_scan<T, 8, 4>(stream, scan, single);
    } else if (a.d_state <= 64) {
      launch_scan<T, 16, 4>(stream, scan, single);
    } else if (a.d_state <= 128) {
      launch_scan<T, 32, 4>(stream, scan, single);
    } else {
      launch_scan<T, 32, 8>(stream, scan, single);
    }
  });
  cuda::check_launch("selective_scan");
}

}  // namespace elapid
