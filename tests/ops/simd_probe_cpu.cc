#include "elapid/cpu/simd.h"
#include "elapid/ops/math.h"
#include "tests/ops/simd_probe.h"

namespace elapid::testing {
namespace {

template <class F>
ELAPID_INLINE void map(const SimdProbe& a, const F& f) {
  const int64_t n = a.x.size();
  for (int64_t i = 0; i < n; i += kLanes) store(a.y.ptr<float>() + i, f(load(a.x.ptr<float>() + i, n - i)), n - i);
}

template <class T>
void pairs(const SimdMoves& a) {
  for (int64_t i = 0; i < a.even.size(); i += kLanes) {
    F32 even, odd;
    load_pair(a.weights.ptr<T>() + 2 * i, even, odd);
    store(a.even.ptr<float>() + i, even);
    store(a.odd.ptr<float>() + i, odd);
  }
}

}  // namespace

void run(Cpu, const SimdProbe& a) {
  switch (a.function) {
    case SimdFunction::exp: return map(a, [](const F32& x) ELAPID_LAMBDA { return exp(x); });
    case SimdFunction::exp2_product:
      return map(a, [](const F32& x) ELAPID_LAMBDA { return exp2_product(x, broadcast(0.5f)); });
    case SimdFunction::log: return map(a, [](const F32& x) ELAPID_LAMBDA { return log(x); });
    case SimdFunction::log1p_of_fraction:
      return map(a, [](const F32& x) ELAPID_LAMBDA { return log1p_of_fraction(x); });
    case SimdFunction::erf: return map(a, [](const F32& x) ELAPID_LAMBDA { return erf(x); });
    case SimdFunction::silu: return map(a, [](const F32& x) ELAPID_LAMBDA { return silu(x, broadcast(1.0f), zero()); });
    case SimdFunction::softplus: return map(a, [](const F32& x) ELAPID_LAMBDA { return softplus(x, zero()); });
  }
}

void run(Cpu, const SimdMoves& a) {
  const float* x = a.x.ptr<float>();
  for (int64_t i = 0; i < a.sums.size(); ++i) {
    a.sums.ptr<float>()[i] = sum(load(x + i * kLanes));
    a.maxima.ptr<float>()[i] = max_lane(load(x + i * kLanes));
  }
  for (int64_t i = 0; i + a.run <= a.x.size(); i += a.run) {
    store(a.copies.ptr<float>() + i, load(x + i, a.run), a.run);
  }
  switch (a.weights.dtype) {
    case DType::f32: return pairs<float>(a);
    case DType::bf16: return pairs<BFloat16>(a);
    default: return pairs<Float16>(a);
  }
}

}  // namespace elapid::testing
