#include "elapid/cuda/math.cuh"
#include "elapid/cuda/sequences.cuh"
#include "elapid/ops/causal_conv1d/causal_conv1d.h"

namespace elapid {
namespace {

using cuda::from_float, cuda::to_float;

constexpr int kThreads = 64;  // few channels of the last block go begging
constexpr int kRun = 32;      // tokens that a thread computes one after another, with the window in registers
constexpr int kAhead = 4;     // of them loaded at once

template <class T>
struct Conv {
  const T* x;
  T* y;
  int64_t x_stride, y_stride;
  const float *weight, *bias;
  float* state;
  const int64_t *offsets, *slots;
  int64_t sequences, tokens, channels, taps;
  bool silu;
};

// V neighbouring elements: in as many bytes at once as they are.
template <int V, class T>
__device__ void load(const T* p, float (&to)[V]) {
  if constexpr (V == 1) {
    to[0] = to_float(*p);
  } else {
    cuda::load_floats<V>(p, to);
  }
}
template <int V, class T>
__device__ void store(T* p, const float (&from)[V]) {
  if constexpr (V == 1) {
    *p = from_float<T>(from[0]);
  } else {
    cuda::store_floats<V>(p, from);
  }
}

template <int taps, int V>
struct Weights {
  float weight[taps][V], bias[V];

  template <class T>
  __device__ Weights(const Conv<T>& a, int64_t c) {
#pragma unroll
    for (int k = 0; k < taps; ++k) load<V>(a.weight + k * a.channels + c, weight[k]);
    for (int i = 0; i < V; ++i) bias[i] = 0;
    if (a.bias != nullptr) load<V>(a.bias + c, bias);
  }
};

// The same operations in the same order for one token as for many: splits of a sequence have the same bits.
template <int taps, int V>
__device__ void output(const Weights<taps, V>& w, const float (&window)[taps][V], bool silu, float (&y)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) {
    float sum = w.bias[i];
#pragma unroll
    for (int k = 0; k < taps; ++k) sum = fmaf(w.weight[k][i], window[k][i], sum);
    y[i] = silu ? cuda::silu_short(sum) : sum;
  }
}

// The inputs before token t, in window[1 …]; zero where there are none.
template <int taps, int V, class T>
__device__ void load_window(const Conv<T>& a, int64_t s, int64_t t, int64_t c, float (&window)[taps][V]) {
  const int64_t begin = a.offsets[s], slot = a.slots[s];
#pragma unroll
  for (int k = 1; k < taps; ++k) {
    const int64_t at = t - taps + k - begin;
    if (at >= 0) {
      load<V>(a.x + (begin + at) * a.x_stride + c, window[k]);
    } else if (slot >= 0) {
      load<V>(a.state + (slot * (taps - 1) + taps - 1 + at) * a.channels + c, window[k]);
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) window[k][i] = 0;
    }
  }
}

// By one token.
template <int taps, int V>
__device__ void shift(float (&window)[taps][V]) {
#pragma unroll
  for (int k = 0; k + 1 < taps; ++k) {
#pragma unroll
    for (int i = 0; i < V; ++i) window[k][i] = window[k + 1][i];
  }
}

// Many tokens: a thread walks kRun of them, over the ends of sequences.
template <class T, int taps, int V>
__global__ void __launch_bounds__(kThreads) walk(Conv<T> a) {
  const int64_t c = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * V;
  if (c >= a.channels) return;
  const Weights<taps, V> w(a, c);
  for (int64_t first = int64_t{blockIdx.y} * kRun; first < a.tokens; first += int64_t{gridDim.y} * kRun) {
    const int64_t end = min(first + kRun, a.tokens);
    int64_t s = cuda::range_of(a.offsets, a.sequences, first), sequence_end = a.offsets[s + 1];
    float window[taps][V];
    load_window<taps, V>(a, s, first, c, window);
    for (int64_t t = first; t < end; t += kAhead) {
      float x[kAhead][V];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (t + i < end) load<V>(a.x + (t + i) * a.x_stride + c, x[i]);
      }
      if (t + kAhead <= min(end, sequence_end)) {
        // All of one sequence: the window slides over registers.
        float inputs[taps - 1 + kAhead][V];
#pragma unroll
        for (int j = 0; j < V; ++j) {
#pragma unroll
          for (int k = 1; k < taps; ++k) inputs[k - 1][j] = window[k][j];
#pragma unroll
          for (int i = 0; i < kAhead; ++i) inputs[taps - 1 + i][j] = x[i][j];
        }
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          float own[taps][V], y[V];
#pragma unroll
          for (int k = 0; k < taps; ++k) {
#pragma unroll
            for (int j = 0; j < V; ++j) own[k][j] = inputs[i + k][j];
          }
          output<taps, V>(w, own, a.silu, y);
          store<V>(a.y + (t + i) * a.y_stride + c, y);
        }
#pragma unroll
        for (int k = 1; k < taps; ++k) {
#pragma unroll
          for (int j = 0; j < V; ++j) window[k][j] = inputs[kAhead + k - 1][j];
        }
        continue;
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (t + i >= end) break;
        if (t + i == sequence_end) {
          while (a.offsets[s + 1] == t + i) ++s;
          sequence_end = a.offsets[s + 1];
          load_window<taps, V>(a, s, t + i, c, window);
        }
        shift<taps, V>(window);
#pragma unroll
        for (int j = 0; j < V; ++j) window[taps - 1][j] = x[i][j];
        float y[V];
        output<taps, V>(w, window, a.silu, y);
        store<V>(a.y + (t + i) * a.y_stride + c, y);
      }
    }
  }
}

// At most one token a sequence: the window is read, used and shifted at once.
template <class T, int taps, int V>
__global__ void __launch_bounds__(kThreads) step(Conv<T> a) {
  const int64_t c = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * V;
  if (c >= a.channels) return;
  const Weights<taps, V> w(a, c);
  for (int64_t s = blockIdx.y; s < a.sequences; s += gridDim.y) {
    const int64_t t = a.offsets[s], slot = a.slots[s];
    if (a.offsets[s + 1] == t) continue;
    float window[taps][V], y[V];
    load_window<taps, V>(a, s, t, c, window);
    shift<taps, V>(window);
    load<V>(a.x + t * a.x_stride + c, window[taps - 1]);
    output<taps, V>(w, window, a.silu, y);
    store<V>(a.y + t * a.y_stride + c, y);
    if (slot < 0) continue;
#pragma unroll
    for (int k = 1; k < taps; ++k) store<V>(a.state + (slot * (taps - 1) + k - 1) * a.channels + c, window[k]);
  }
}

// Any number of taps, one output a thread, inputs from memory.
template <class T>
__global__ void __launch_bounds__(kThreads) outputs(Conv<T> a) {
  const int64_t c = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (c >= a.channels) return;
  for (int64_t t = blockIdx.y; t < a.tokens; t += gridDim.y) {
    const int64_t s = cuda::range_of(a.offsets, a.sequences, t), begin = a.offsets[s], slot = a.slots[s];
    float sum = a.bias == nullptr ? 0 : a.bias[c];
    for (int64_t k = 0; k < a.taps; ++k) {
      const int64_t at = t - a.taps + 1 + k - begin;
      float x = 0;
      if (at >= 0) {
        x = to_float(a.x[(begin + at) * a.x_stride + c]);
      } else if (slot >= 0) {
        x = a.state[(slot * (a.taps - 1) + a.taps - 1 + at) * a.channels + c];
      }
      sum = fmaf(a.weight[k * a.channels + c], x, sum);
    }
    a.y[t * a.y_stride + c] = from_float<T>(a.silu ? cuda::silu_short(sum) : sum);
  }
}

// A sequence's last inputs into its window. A launch of its own: every output has read the old window by then.
template <class T>
__global__ void __launch_bounds__(kThreads) keep_windows(Conv<T> a) {
  const int64_t c = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (c >= a.channels) return;
  for (int64_t s = blockIdx.y; s < a.sequences; s += gridDim.y) {
    const int64_t begin = a.offsets[s], length = a.offsets[s + 1] - begin, slot = a.slots[s], kept = a.taps - 1;
    if (slot < 0 || length == 0) continue;
    float* window = a.state + slot * kept * a.channels + c;
    for (int64_t j = 0; j < kept; ++j) {  // oldest first: a row is read before it is overwritten
      const int64_t at = length - kept + j;
      window[j * a.channels] =
          at >= 0 ? to_float(a.x[(begin + at) * a.x_stride + c]) : window[(j + length) * a.channels];
    }
  }
}

unsigned grid_y(int64_t n) { return static_cast<unsigned>(std::min<int64_t>(n, 65535)); }

template <class T, int taps, int V>
void launch_taps(cudaStream_t stream, const Conv<T>& a, bool single) {
  const auto columns = static_cast<unsigned>(cuda::ceil_div<int64_t>(a.channels, kThreads * V));
  if (single) {
    step<T, taps, V><<<dim3(columns, grid_y(a.sequences)), kThreads, 0, stream>>>(a);
  } else {
    walk<T, taps, V><<<dim3(columns, grid_y(cuda::ceil_div<int64_t>(a.tokens, kRun))), kThreads, 0, stream>>>(a);
  }
}

template <class T>
void launch_conv(cudaStream_t stream, const Conv<T>& a, bool single, bool aligned) {
  constexpr int kWide = cuda::Pack<T>::kSize;
  const bool wide = aligned && a.channels % kWide == 0;
  const bool few_taps = cuda::with_constant<2, 3, 4>(a.taps, [&]<int taps>() {
    wide ? launch_taps<T, taps, kWide>(stream, a, single) : launch_taps<T, taps, 1>(stream, a, single);
  });
  const auto columns = static_cast<unsigned>(cuda::ceil_div<int64_t>(a.channels, kThreads));
  if (!few_taps) {
    outputs<T><<<dim3(columns, grid_y(a.tokens)), kThreads, 0, stream>>>(a);
    cuda::check_launch("causal_conv1d");
  }
  if (few_taps && single) return;
  if (a.state != nullptr && a.taps > 1) {
    keep_windows<T><<<dim3(columns, grid_y(a.sequences)), kThreads, 0, stream>>>(a);
  }
}

}  // namespace

void run(Cuda gpu, const CausalConv1dForward& a) {
  if (a.x.rows() == 0 || a.x.cols() == 0) return;
  cuda::with_type(a.x.dtype, [&]<class T>() {
    const Conv<T> conv{cuda::data_of<T>(a.x),
                       cuda::data_of<T>(a.y),
                       a.x.row_stride(),
                       a.y.row_stride(),
                       cuda::data_of<float>(a.weight),
                       cuda::data_of<float>(a.bias),
                       cuda::data_of<float>(a.state),
                       cuda::data_of<int64_t>(a.offsets),
                       cuda::data_of<int64_t>(a.slots),
                       a.slots.size(),
                       a.x.rows(),
                       a.x.cols(),
                       a.weight.rows(),
                       a.silu};
    bool aligned = true;
    for (const Tensor& t : {a.x, a.y, a.weight, a.bias, a.state}) aligned = aligned && cuda::rows_aligned(t);
    launch_conv<T>(cuda::stream_of(gpu), conv, a.longest <= 1, aligned);
  });
  cuda::check_launch("causal_conv1d");
}

}  // namespace elapid
