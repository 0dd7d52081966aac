#include "elapid/cuda/elements.cuh"
#include "elapid/ops/elementwise/elementwise.h"

namespace elapid {
namespace {

// Each operation is rounded on its own, as the reference says; only the result may be bf16.
template <class T>
struct ScaleAdd {
  cuda::Rows<const T> x;
  const float* factors;
  cuda::Rows<const T> b;
  cuda::Rows<T> y;
  float factor;

  template <int N>
  __device__ void run(int64_t row, int64_t column) const {
    float values[N], other[N];
    cuda::load_run(x.at(row, column), values);
    if (factors != nullptr) {
      for (int i = 0; i < N; ++i) values[i] = __fmul_rn(values[i], factors[column + i]);
    }
    if (b.data != nullptr) {
      cuda::load_run(b.at(row, column), other);
      for (int i = 0; i < N; ++i) values[i] = __fadd_rn(values[i], other[i]);
    }
    for (int i = 0; i < N; ++i) values[i] *= factor;
    cuda::store_run(y.at(row, column), values);
  }
};

template <class T>
struct SiluGate {
  cuda::Rows<const T> x, z;
  cuda::Rows<T> y;

  template <int N>
  __device__ void run(int64_t row, int64_t column) const {
    float values[N], gates[N];
    cuda::load_run(x.at(row, column), values);
    cuda::load_run(z.at(row, column), gates);
    for (int i = 0; i < N; ++i) values[i] *= cuda::silu(gates[i]);
    cuda::store_run(y.at(row, column), values);
  }
};

}  // namespace

void run(Cuda gpu, const ConcatColumnsForward& a) {
  cuda::with_type(a.y.dtype, [&]<class T>() {
    const auto copy = [&](const Tensor& from, const Tensor& to) {
      cuda::for_elements(gpu, to.rows(), to.cols(), cuda::rows_aligned(from) && cuda::rows_aligned(to),
                         cuda::Copy<T, T>{from, to}, "concat_columns");
    };
    copy(a.a, a.y.columns(0, a.a.cols()));
    copy(a.b, a.y.columns(a.a.cols(), a.y.cols()));
  });
}

void run(Cuda gpu, const ScaleAddForward& a) {
  const bool aligned = cuda::rows_aligned(a.x) && cuda::rows_aligned(a.b) && cuda::rows_aligned(a.y);
  cuda::with_type(a.x.dtype, [&]<class T>() {
    cuda::for_elements(gpu, a.y.rows(), a.y.cols(), aligned,
                       ScaleAdd<T>{a.x, cuda::data_of<const float>(a.factors), a.b, a.y, a.factor}, "scale_add");
  });
}

void run(Cuda gpu, const SiluGateForward& a) {
  const bool aligned = cuda::rows_aligned(a.x) && cuda::rows_aligned(a.z) && cuda::rows_aligned(a.y);
  cuda::with_type(a.x.dtype, [&]<class T>() {
    cuda::for_elements(gpu, a.y.rows(), a.y.cols(), aligned, SiluGate<T>{a.x, a.z, a.y}, "silu_gate");
  });
}

}  // namespace elapid
