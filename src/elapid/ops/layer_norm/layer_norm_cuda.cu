#include "elapid/cuda/row_reduce.cuh"
#include "elapid/ops/layer_norm/layer_norm.h"

namespace elapid {
namespace {

template <class X, class Y>
struct Norm {
  cuda::Rows<const X> x;
  const float *weight, *bias;
  cuda::Rows<Y> y;
  float eps;
  int64_t columns;
};

template <int N, class X, class Y>
__global__ void layer_norm(Norm<X, Y> a) {
  const int64_t r = blockIdx.x;
  const auto each = [&](const auto& f) {
    for (int64_t c = threadIdx.x * N; c < a.columns; c += blockDim.x * N) {
      float u[N];
      cuda::load_run(a.x.at(r, c), u);
      f(c, u);
    }
  };
  float sum = 0, squares = 0;
  each([&](int64_t, float(&u)[N]) {
    for (int i = 0; i < N; ++i) sum += u[i];
  });
  const float mean = cuda::block_sum(sum) / static_cast<float>(a.columns);
  each([&](int64_t, float(&u)[N]) {
    for (int i = 0; i < N; ++i) squares = fmaf(u[i] - mean, u[i] - mean, squares);
  });
  const float factor = 1 / sqrtf(cuda::block_sum(squares) / static_cast<float>(a.columns) + a.eps);
  each([&](int64_t c, float(&u)[N]) {
    for (int i = 0; i < N; ++i) {
      u[i] = (u[i] - mean) * factor;
      if (a.weight != nullptr) u[i] *= a.weight[c + i];
      if (a.bias != nullptr) u[i] += a.bias[c + i];
    }
    cuda::store_run(a.y.at(r, c), u);
  });
}

}  // namespace

void run(Cuda gpu, const LayerNormForward& a) {
  const int64_t columns = a.x.cols();
  if (a.x.rows() == 0 || columns == 0) return;
  const bool aligned = cuda::rows_aligned(a.x) && cuda::rows_aligned(a.y) && columns % 8 == 0;
  const auto grid = static_cast<unsigned>(a.x.rows());
  cuda::with_type(a.x.dtype, [&]<class X>() {
    cuda::with_type(a.y.dtype, [&]<class Y>() {
      const Norm<X, Y> norm{
          a.x, cuda::data_of<const float>(a.weight), cuda::data_of<const float>(a.bias), a.y, a.eps, columns};
      if (aligned) {
        layer_norm<8><<<grid, cuda::row_threads(columns, 8), 0, cuda::stream_of(gpu)>>>(norm);
      } else {
        layer_norm<1><<<grid, cuda::row_threads(columns, 1), 0, cuda::stream_of(gpu)>>>(norm);
      }
    });
  });
  cuda::check_launch("layer_norm");
}

}  // namespace elapid
