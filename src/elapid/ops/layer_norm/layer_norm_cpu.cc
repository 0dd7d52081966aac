#include "elapid/cpu/simd.h"
#include "elapid/ops/layer_norm/layer_norm.h"

namespace elapid {

void run(Cpu cpu, const LayerNormForward& a) {
  const int64_t width = a.x.cols();
  parallel_for(cpu.threads, a.x.rows(), 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const float* x = a.x.row<float>(row);
      float* y = a.y.row<float>(row);
      F32 total = zero();
      for (int64_t c = 0; c < width; c += kLanes) total = total + load(x + c, width - c);
      const F32 mean = broadcast(sum(total) / static_cast<float>(width));
      // The differences wait in y for their norm; lanes beyond the row are none.
      F32 squares = zero();
      for (int64_t c = 0; c < width; c += kLanes) {
        F32 v = load(x + c, width - c) - mean;
        store(y + c, v, width - c);
        if (width - c < kLanes) v = load(y + c, width - c);
        squares = fma(v, v, squares);
      }
      const float variance = sum(squares) / static_cast<float>(width);
      const F32 scale = broadcast(1.0f / __builtin_sqrtf(variance + a.eps));
      for (int64_t c = 0; c < width; c += kLanes) {
        F32 v = load(y + c, width - c) * scale;
        if (a.weight) v = v * load(a.weight.ptr<float>() + c, width - c);
        if (a.bias) v = v + load(a.bias.ptr<float>() + c, width - c);
        store(y + c, v, width - c);
      }
    }
  });
}

}  // namespace elapid
