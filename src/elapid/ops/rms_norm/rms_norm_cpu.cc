#include "elapid/cpu/simd.h"
#include "elapid/ops/math.h"
#include "elapid/ops/rms_norm/rms_norm.h"

namespace elapid {

void run(Cpu cpu, const RmsNormForward& a) {
  const int64_t width = a.x.cols() / a.groups;
  const bool gate_first = a.z && !a.norm_before_gate, gate_last = a.z && a.norm_before_gate;
  parallel_for(cpu.threads, a.x.rows(), 8, [&](int64_t begin, int64_t end, int) {
    const F32 one = broadcast(1.0f), none = zero();
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t group = 0; group < a.groups; ++group) {
        const int64_t first = group * width;
        const float* x = a.x.row<float>(row) + first;
        float* y = a.y.row<float>(row) + first;
        // The gated values wait in y for their norm.
        F32 squares = none;
        for (int64_t c = 0; c < width; c += kLanes) {
          F32 u = load(x + c, width - c);
          if (gate_first) {
            u = u * silu(load(a.z.row<float>(row) + first + c, width - c), one, none);
            store(y + c, u, width - c);
          }
          squares = fma(u, u, squares);
        }
        const float* u = gate_first ? y : x;
        const float mean = sum(squares) / static_cast<float>(width);
        const F32 scale = broadcast(1.0f / __builtin_sqrtf(mean + a.eps));
        for (int64_t c = 0; c < width; c += kLanes) {
          F32 v = load(u + c, width - c) * scale;
          if (a.weight) v = v * load(a.weight.ptr<float>() + first + c, width - c);
          if (gate_last) v = v * silu(load(a.z.row<float>(row) + first + c, width - c), one, none);
          store(y + c, v, width - c);
        }
      }
    }
  });
}

}  // namespace elapid
