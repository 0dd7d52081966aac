#pragma once

// Kernels that compute every element of a matrix on its own: a functor is called for runs of eight columns where all
// rows begin at multiples of 16 bytes, else for single ones. For *.cu files.

#include "elapid/cuda/launch.cuh"

#include <algorithm>

namespace elapid::cuda {

// N floats from elements of either type; N is 1 or 8.
template <int N, class T>
__device__ void load_run(const T* p, float (&to)[N]) {
  if constexpr (N == 1) {
    to[0] = to_float(*p);
  } else {
    load_floats(p, to);
  }
}
template <int N, class T>
__device__ void store_run(T* p, const float (&from)[N]) {
  if constexpr (N == 1) {
    *p = from_float<T>(from[0]);
  } else {
    store_floats(p, from);
  }
}

// A matrix as kernels see it.
template <class T>
struct Rows {
  T* data;
  int64_t stride;  // elements

  Rows(const Tensor& t) : data(data_of<T>(t)), stride(t.row_stride()) {}  // NOLINT: implicit, the two are one thing
  __device__ T* at(int64_t row, int64_t column) const { return data + row * stride + column; }
};

template <int N, class F>
__global__ void over_elements(int64_t rows, int64_t columns, F f) {
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
  if (column >= columns) return;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) f.template run<N>(row, column);
}

// Calls f.run<N>(row, column) for all runs of N columns; `aligned` says that rows of everything f touches are.
template <class F>
void for_elements(Cuda gpu, int64_t rows, int64_t columns, bool aligned, const F& f, const char* kernel) {
  if (rows == 0 || columns == 0) return;
  constexpr int64_t kThreads = 128, kMostRows = 32768;
  const auto grid = [&](int64_t runs) {
    return dim3(static_cast<unsigned>(ceil_div(runs, kThreads)), static_cast<unsigned>(std::min(rows, kMostRows)));
  };
  if (aligned && columns % 8 == 0) {
    over_elements<8><<<grid(columns / 8), kThreads, 0, stream_of(gpu)>>>(rows, columns, f);
  } else {
    over_elements<1><<<grid(columns), kThreads, 0, stream_of(gpu)>>>(rows, columns, f);
  }
  check_launch(kernel);
}

// y = x, for for_elements(): rounded where elements of y are bf16 and those of x are not.
template <class From, class To>
struct Copy {
  Rows<const From> x;
  Rows<To> y;

  template <int N>
  __device__ void run(int64_t row, int64_t column) const {
    float values[N];
    load_run(x.at(row, column), values);
    store_run(y.at(row, column), values);
  }
};

}  // namespace elapid::cuda
