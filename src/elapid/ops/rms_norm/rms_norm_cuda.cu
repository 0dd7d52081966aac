#include "elapid/cuda/row_reduce.cuh"
#include "elapid/ops/rms_norm/rms_norm.h"

namespace elapid {
namespace {

template <class X, class Y>
struct Norm {
  cuda::Rows<const X> x, z;
  const float* weight;
  cuda::Rows<Y> y;
  float eps;
  int64_t columns;  // of a group
  bool norm_before_gate, keep;
};

// One block for a group of columns of a row.
template <int N, class X, class Y>
__global__ void rms_norm(Norm<X, Y> a) {
  extern __shared__ __align__(16) float row[];
  const int64_t r = blockIdx.x, first = blockIdx.y * a.columns;
  const bool gated = a.z.data != nullptr;
  // What the mean of squares is taken of.
  const auto read = [&](int64_t c, float(&u)[N]) {
    cuda::load_run(a.x.at(r, first + c), u);
    if (gated && !a.norm_before_gate) {
      float z[N];
      cuda::load_run(a.z.at(r, first + c), z);
      for (int i = 0; i < N; ++i) u[i] *= cuda::silu(z[i]);
    }
  };
  float sum = 0;
  for (int64_t c = threadIdx.x * N; c < a.columns; c += blockDim.x * N) {
    float u[N];
    read(c, u);
    for (int i = 0; i < N; ++i) {
      sum = fmaf(u[i], u[i], sum);
      if (a.keep) row[c + i] = u[i];
    }
  }
  sum = cuda::block_sum(sum);
  const float factor = 1 / sqrtf(sum / static_cast<float>(a.columns) + a.eps);
  for (int64_t c = threadIdx.x * N; c < a.columns; c += blockDim.x * N) {
    float u[N];
    if (a.keep) {
      for (int i = 0; i < N; ++i) u[i] = row[c + i];
    } else {
      read(c, u);
    }
    for (int i = 0; i < N; ++i) {
      u[i] *= factor;
      if (a.weight != nullptr) u[i] *= a.weight[first + c + i];
    }
    if (gated && a.norm_before_gate) {
      float z[N];
      cuda::load_run(a.z.at(r, first + c), z);
      for (int i = 0; i < N; ++i) u[i] *= cuda::silu(z[i]);
    }
    cuda::store_run(a.y.at(r, first + c), u);
  }
}

}  // namespace

void run(Cuda gpu, const RmsNormForward& a) {
  if (a.x.rows() == 0 || a.x.cols() == 0) return;
  const int64_t columns = a.x.cols() / a.groups;
  const bool aligned =
      cuda::rows_aligned(a.x) && cuda::rows_aligned(a.z) && cuda::rows_aligned(a.y) && columns % 8 == 0;
  const dim3 grid(static_cast<unsigned>(a.x.rows()), static_cast<unsigned>(a.groups));
  const size_t kept = cuda::kept_bytes(columns);
  cuda::with_type(a.x.dtype, [&]<class X>() {
    cuda::with_type(a.y.dtype, [&]<class Y>() {
      const Norm<X, Y> norm{a.x,     a.z, cuda::data_of<const float>(a.weight), a.y, a.eps, columns, a.norm_before_gate,
                            kept > 0};
      if (aligned) {
        rms_norm<8><<<grid, cuda::row_threads(columns, 8), kept, cuda::stream_of(gpu)>>>(norm);
      } else {
        rms_norm<1><<<grid, cuda::row_threads(columns, 1), kept, cuda::stream_of(gpu)>>>(norm);
      }
    });
  });
  cuda::check_launch("rms_norm");
}

}  // namespace elapid
