#include "elapid/cuda/launch.cuh"
#include "elapid/cuda/math.cuh"
#include "elapid/ops/selective_scan/selective_scan.h"

// A channel's states lie in the registers of `lanes` neighbouring lanes, and a block walks its sequence token by token:
// one exponential, a product and two fused multiply-adds a state. Thus every element is the same operations in the same
// order for any length, and there is no second pass over the exponentials, which are what limits a scan whose operands
// come at the memory's rate. With two states a lane, one sequence of a released model has 1.2 to 2.5 warps for each
// scheduler; the independent exponentials of eight tokens at a time keep those busy.

namespace elapid {
namespace {

using cuda::Floats, cuda::from_float, cuda::to_float;

constexpr int kThreads = 128;
constexpr int kTile = 32;     // tokens whose operands lie in shared memory together
constexpr int kTogether = 8;  // tokens whose sums over states are reduced together

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
  bool wide;           // rows of x, dt, z and y may be read four channels at a time
  bool wide_operands;  // rows of B and C four states
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

// One token's states of a lane. Returns their share of y.
template <int N, bool kFull>
__device__ float advance(float (&h)[N], const float (&A)[N], float dt, float weighted_x, const float* B, const float* C,
                         int states) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float decay = cuda::exp2_fast(__fmul_rn(dt, A[i]));
    h[i] = fmaf(decay, h[i], __fmul_rn(weighted_x, B[i]));
    if (kFull || i < states) sum = fmaf(C[i], h[i], sum);
  }
  return sum;
}

template <int lanes, int N, bool kFull>
struct Own {
  float A[N], h[N];
  int states;  // of this lane

  __device__ Own() {}
  template <class T>
  __device__ Own(const Scan<T>& a, int64_t c, bool real, int64_t slot) {
    const int first = static_cast<int>(threadIdx.x % lanes) * N;
    states = real ? max(0, min(N, static_cast<int>(a.d_state) - first)) : 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      A[i] = i < states ? a.A[c * a.A_stride + first + i] : 0;
      h[i] = 0;
    }
    if (slot < 0 || states == 0) return;
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
  __device__ void keep(const Scan<T>& a, int64_t c, int64_t slot) const {
    if (slot < 0 || states == 0) return;
    const int first = static_cast<int>(threadIdx.x % lanes) * N;
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

template <int count, class T>
__device__ void load_some(const T* p, int64_t left, bool wide, float* to) {
  if (count % 4 == 0 && wide && left >= count) {
#pragma unroll
    for (int i = 0; i + 3 < count; i += 4) {
      float four[4];
      cuda::load_floats<4>(p + i, four);
#pragma unroll
      for (int j = 0; j < 4; ++j) to[i + j] = four[j];
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < count; ++i) to[i] = i < left ? to_float(p[i]) : 0;
}

template <class T, int lanes, int N, bool kFull>
__global__ void __launch_bounds__(kThreads) walk(Scan<T> a) {
  constexpr int kChannels = kThreads / lanes, kStates = lanes * N;
  // While operands are prepared, a thread has four or fewer channels of one token, and a quarter of its B and C.
  constexpr int kItems = kChannels * kTile / kThreads, kQuarter = kStates / 4;
  constexpr bool kPrefetch = kQuarter <= 8;
  static_assert(kThreads == 4 * kTile && lanes >= kTogether);
  __shared__ float2 weights[kTile][kChannels];  // dt · log2 e, dt · x
  __shared__ __align__(16) float B[kTile][kStates], C[kTile][kStates];
  __shared__ float sums[kTile][kChannels + 1];

  const Place place(a, blockIdx.x, kChannels);
  const int64_t s = blockIdx.x / (a.tiles * a.groups), begin = a.offsets[s], end = a.offsets[s + 1], slot = a.slots[s];
  if (begin == end) return;
  const int row = threadIdx.x / 4, column = threadIdx.x % 4 * kItems, quarter = threadIdx.x % 4 * kQuarter;
  const int64_t first = place.first + column, left = place.end - first;
  float D[kItems], bias[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    D[i] = a.D != nullptr && i < left ? a.D[first + i] : 0;
    bias[i] = a.dt_bias != nullptr && i < left ? a.dt_bias[first + i] : 0;
  }
  const int channel = threadIdx.x / lanes, part = threadIdx.x % lanes;
  const int64_t c = place.first + channel;
  Own<lanes, N, kFull> own(a, c, c < place.end, slot);

  float x[kItems], dt[kItems], z[kItems] = {}, next_B[kQuarter], next_C[kQuarter];
  const auto load_rows = [&](int64_t tile) {
    const int64_t t = tile + row;
    if (t >= end) return;
    load_some<kItems>(a.x + t * a.x_stride + first, left, a.wide, x);
    load_some<kItems>(a.dt + t * a.dt_stride + first, left, a.wide, dt);
    if (a.z != nullptr) load_some<kItems>(a.z + t * a.z_stride + first, left, a.wide, z);
  };
  const auto load_operands = [&](int64_t tile) {
    const int64_t t = tile + row, at = place.group * a.d_state + quarter;
    if (t >= end) return;
    load_some<kQuarter>(a.B + t * a.B_stride + at, a.d_state - quarter, a.wide_operands, next_B);
    load_some<kQuarter>(a.C + t * a.C_stride + at, a.d_state - quarter, a.wide_operands, next_C);
  };
  load_rows(begin);
  if (kPrefetch) load_operands(begin);
  for (int64_t tile = begin; tile < end; tile += kTile) {
    const int tokens = static_cast<int>(min(int64_t{kTile}, end - tile));
    float skip[kItems], gate[kItems];
    if (!kPrefetch) load_operands(tile);
    if (row < tokens) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const float step = i < left ? softplus_of(dt[i], bias[i]) : 0;
        weights[row][column + i] = make_float2(step * cuda::kLog2e, step * x[i]);
        skip[i] = x[i];
        gate[i] = z[i];
      }
#pragma unroll
      for (int i = 0; i < kQuarter; ++i) {
        B[row][quarter + i] = next_B[i];
        C[row][quarter + i] = next_C[i];
      }
    }
    __syncthreads();
    load_rows(tile + kTile);
    if (kPrefetch) load_operands(tile + kTile);
    for (int t0 = 0; t0 < tokens; t0 += kTogether) {
      float v[kTogether];
      const auto token = [&](int j) {
        const float2 w = weights[t0 + j][channel];
        const Floats<N> b = *reinterpret_cast<const Floats<N>*>(&B[t0 + j][part * N]);
        const Floats<N> weight = *reinterpret_cast<const Floats<N>*>(&C[t0 + j][part * N]);
        v[j] = advance<N, kFull>(own.h, own.A, w.x, w.y, b.at, weight.at, own.states);
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
      // Sums over lanes, by halves as warp_sum() has them; in the last three rounds lanes share the tokens out, until
      // each has one.
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
      if (part < kTogether) sums[t0 + part][channel] = v[0];
    }
    __syncthreads();
    if (row < tokens) {
      T* y = a.y + (tile + row) * a.channels + first;
      float out[kItems];
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        out[i] = finish<T>(sums[row][column + i], D[i], skip[i], a.z != nullptr, gate[i]);
      }
      if constexpr (kItems == 4) {
        if (a.wide && left >= kItems) {
          cuda::store_floats<4>(y, out);
          continue;
        }
      }
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        if (i < left) y[i] = from_float<T>(out[i]);
      }
    }
  }
  own.keep(a, c, slot);
}

// At most one token a sequence: the state is read and written once. A thread has the same states of `together`
// sequences, whose loads are in flight at once; A is read once for them.
template <class T, int lanes, int N, bool kFull, int together>
__global__ void __launch_bounds__(kThreads) step(Scan<T> a) {
  const Place place(a, blockIdx.x, kThreads / lanes);
  const int64_t c = place.first + threadIdx.x / lanes;
  const bool real = c < place.end;
  const int part = threadIdx.x % lanes;
  const float D = a.D != nullptr && real ? a.D[c] : 0, bias = a.dt_bias != nullptr && real ? a.dt_bias[c] : 0;
  for (int64_t s0 = int64_t{blockIdx.y} * together; s0 < a.sequences; s0 += int64_t{gridDim.y} * together) {
    float x[together], dt[together], z[together], B[together][N], C[together][N];
    Own<lanes, N, kFull> own[together];
    int64_t token[together], slot[together];
#pragma unroll
    for (int r = 0; r < together; ++r) {
      token[r] = -1;
      if (s0 + r < a.sequences && a.offsets[s0 + r + 1] > a.offsets[s0 + r]) token[r] = a.offsets[s0 + r];
      slot[r] = token[r] < 0 ? -1 : a.slots[s0 + r];
    }
#pragma unroll
    for (int r = 0; r < together; ++r) {
      own[r] = Own<lanes, N, kFull>(a, c, real && token[r] >= 0, slot[r]);
      const bool there = own[r].states > 0;
      x[r] = dt[r] = z[r] = 0;
      if (there || (real && token[r] >= 0)) {
        x[r] = to_float(a.x[token[r] * a.x_stride + c]);
        dt[r] = to_float(a.dt[token[r] * a.dt_stride + c]);
        if (a.z != nullptr) z[r] = to_float(a.z[token[r] * a.z_stride + c]);
      }
      const int64_t at = place.group * a.d_state + part * N;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        B[r][i] = i < own[r].states ? to_float(a.B[token[r] * a.B_stride + at + i]) : 0;
        C[r][i] = i < own[r].states ? to_float(a.C[token[r] * a.C_stride + at + i]) : 0;
      }
    }
#pragma unroll
    for (int r = 0; r < together; ++r) {
      const float w = softplus_of(dt[r], bias);
      float sum = advance<N, kFull>(own[r].h, own[r].A, w * cuda::kLog2e, w * x[r], B[r], C[r], own[r].states);
#pragma unroll
      for (int lane = lanes / 2; lane > 0; lane /= 2) sum += __shfl_xor_sync(cuda::kAllLanes, sum, lane);
      own[r].keep(a, c, slot[r]);
      if (part == 0 && real && token[r] >= 0) {
        a.y[token[r] * a.channels + c] = from_float<T>(finish<T>(sum, D, x[r], a.z != nullptr, z[r]));
      }
    }
  }
}

template <class T, int lanes, int N>
void launch_scan(cudaStream_t stream, Scan<T> a, bool single) {
  constexpr int kTogetherSteps = 4;
  a.tiles = cuda::ceil_div<int64_t>(a.channels / a.groups, kThreads / lanes);
  a.wide_state = a.wide_state && reinterpret_cast<uintptr_t>(a.state) % sizeof(Floats<N>) == 0;
  const bool full = a.d_state == lanes * N;
  if (!single) {
    const auto blocks = static_cast<unsigned>(a.tiles * a.groups * a.sequences);
    full ? walk<T, lanes, N, true><<<blocks, kThreads, 0, stream>>>(a)
         : walk<T, lanes, N, false><<<blocks, kThreads, 0, stream>>>(a);
    return;
  }
  const bool several = a.sequences >= kTogetherSteps && N <= 4;
  const int64_t rows = several ? cuda::ceil_div<int64_t>(a.sequences, kTogetherSteps) : a.sequences;
  const dim3 grid(static_cast<unsigned>(a.tiles * a.groups), static_cast<unsigned>(rows < 65535 ? rows : 65535));
  if (several) {
    full ? step<T, lanes, N, true, kTogetherSteps><<<grid, kThreads, 0, stream>>>(a)
         : step<T, lanes, N, false, kTogetherSteps><<<grid, kThreads, 0, stream>>>(a);
  } else {
    full ? step<T, lanes, N, true, 1><<<grid, kThreads, 0, stream>>>(a)
         : step<T, lanes, N, false, 1><<<grid, kThreads, 0, stream>>>(a);
  }
}

}  // namespace

void run(Cuda gpu, const SelectiveScanForward& a) {
  const SelectiveScan& in = a.in;
  if (in.x.rows() == 0 || in.x.cols() == 0) return;
  cuda::with_type(in.x.dtype, [&]<class T>() {
    const auto rows_of_four = [](const Tensor& t) {
      const auto bytes = static_cast<int64_t>(4 * sizeof(T));
      return reinterpret_cast<intptr_t>(t.data) % bytes == 0 && t.row_stride() % 4 == 0;
    };
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
    scan.wide = in.x.cols() / in.groups % 4 == 0 && rows_of_four(in.x) && rows_of_four(in.dt) &&
                (!in.z || rows_of_four(in.z)) && rows_of_four(a.y);
    scan.wide_operands = a.d_state % 4 == 0 && rows_of_four(in.B) && rows_of_four(in.C);
    scan.wide_state = true;
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
