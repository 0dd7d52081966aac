#include "elapid/cuda/elements.cuh"
#include "elapid/ops/activation/activation.h"
#include "elapid/ops/math.h"

namespace elapid {
namespace {

template <Activation kind>
__device__ float activated(float x) {
  if constexpr (kind == Activation::silu) {
    return cuda::silu(x);
  } else if constexpr (kind == Activation::gelu) {
    return 0.5f * x * (1 + erff(x * 0.70710678118654752f));
  } else if constexpr (kind == Activation::gelu_tanh) {
    return x / (1 + expf(-(x * fmaf(kGeluTanhCubic, x * x, kGeluTanhLinear))));
  } else {
    const float r = x > 0 || x != x ? x : 0;  // NaN stays NaN
    return kind == Activation::relu2 ? r * r : r;
  }
}

template <class T, Activation kind>
struct Activate {
  cuda::Rows<const T> x;
  cuda::Rows<T> y;
  float multiplier;
  int64_t other;  // column where the other half begins; 0: not gated

  template <int N>
  __device__ void run(int64_t row, int64_t column) const {
    float values[N], up[N];
    cuda::load_run(x.at(row, column), values);
    for (int i = 0; i < N; ++i) values[i] = activated<kind>(multiplier * values[i]);
    if (other > 0) {
      cuda::load_run(x.at(row, other + column), up);
      for (int i = 0; i < N; ++i) values[i] *= up[i];
    }
    cuda::store_run(y.at(row, column), values);
  }
};

}  // namespace

void run(Cuda gpu, const ActivationForward& a) {
  const int64_t other = a.gated ? a.y.cols() : 0;
  const bool aligned = cuda::rows_aligned(a.x) && cuda::rows_aligned(a.y) && other % 8 == 0;
  cuda::with_type(a.x.dtype, [&]<class T>() {
    const auto apply = [&]<Activation kind>() {
      cuda::for_elements(gpu, a.y.rows(), a.y.cols(), aligned, Activate<T, kind>{a.x, a.y, a.gate_multiplier, other},
                         "activation");
    };
    switch (a.act) {
      case Activation::silu: return apply.template operator()<Activation::silu>();
      case Activation::gelu: return apply.template operator()<Activation::gelu>();
      case Activation::gelu_tanh: return apply.template operator()<Activation::gelu_tanh>();
      case Activation::relu: return apply.template operator()<Activation::relu>();
      case Activation::relu2: return apply.template operator()<Activation::relu2>();
    }
  });
}

}  // namespace elapid
