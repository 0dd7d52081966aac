#include "elapid/cpu/simd.h"
#include "elapid/ops/activation/activation.h"
#include "elapid/ops/math.h"

namespace elapid {
namespace {

constexpr int64_t kPiece = 2048;  // columns of a row that are worth a task's bookkeeping

template <class F>
ELAPID_INLINE void map(Cpu cpu, const ActivationForward& a, const F& act) {
  const int64_t width = a.y.cols(), pieces = (width + kPiece - 1) / kPiece;
  // Short rows share a task.
  const int64_t grain = 4 * kPiece / (width < kPiece ? width + 1 : kPiece);
  parallel_for(cpu.threads, a.y.rows() * pieces, grain, [&](int64_t begin, int64_t end, int) {
    const F32 multiplier = broadcast(a.gate_multiplier);
    for (int64_t i = begin; i < end; ++i) {
      const float* x = a.x.row<float>(i / pieces);
      float* y = a.y.row<float>(i / pieces);
      const int64_t first = i % pieces * kPiece, last = first + kPiece < width ? first + kPiece : width;
      for (int64_t j = first; j < last; j += kLanes) {
        F32 v = act(multiplier * load(x + j, last - j));
        if (a.gated) v = v * load(x + width + j, last - j);
        store(y + j, v, last - j);
      }
    }
  });
}

}  // namespace

void run(Cpu cpu, const ActivationForward& a) {
  switch (a.act) {
    case Activation::silu:
      return map(cpu, a, [](const F32& x) ELAPID_LAMBDA { return silu(x, broadcast(1.0f), zero()); });
    case Activation::gelu:
      return map(cpu, a, [](const F32& x) ELAPID_LAMBDA {
        return gelu(x, broadcast(0.5f), broadcast(1.0f), broadcast(0.70710678118654752f));
      });
    case Activation::gelu_tanh:
      return map(cpu, a, [](const F32& x) ELAPID_LAMBDA {
        return gelu_tanh(x, broadcast(1.0f), zero(), broadcast(kGeluTanhLinear), broadcast(kGeluTanhCubic));
      });
    case Activation::relu: return map(cpu, a, [](const F32& x) ELAPID_LAMBDA { return relu(x, zero()); });
    case Activation::relu2:
      return map(cpu, a, [](const F32& x) ELAPID_LAMBDA {
        const F32 r = relu(x, zero());
        return r * r;
      });
  }
}

}  // namespace elapid
