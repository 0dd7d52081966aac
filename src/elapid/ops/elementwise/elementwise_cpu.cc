#include "elapid/cpu/simd.h"
#include "elapid/ops/elementwise/elementwise.h"
#include "elapid/ops/math.h"

namespace elapid {
namespace {

constexpr int64_t kGrain = 16;  // rows a task: some thousand elements

ELAPID_INLINE void copy_row(const float* from, float* to, int64_t columns) {
  for (int64_t c = 0; c < columns; c += kLanes) store(to + c, load(from + c, columns - c), columns - c);
}

}  // namespace

void run(Cpu cpu, const ConcatColumnsForward& a) {
  parallel_for(cpu.threads, a.y.rows(), kGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      copy_row(a.a.row<float>(row), a.y.row<float>(row), a.a.cols());
      copy_row(a.b.row<float>(row), a.y.row<float>(row) + a.a.cols(), a.b.cols());
    }
  });
}

void run(Cpu cpu, const ScaleAddForward& a) {
  const F32 factor = broadcast(a.factor);
  const int64_t columns = a.y.cols();
  parallel_for(cpu.threads, a.y.rows(), kGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const float* x = a.x.row<float>(row);
      const float* b = a.b ? a.b.row<float>(row) : nullptr;
      const float* factors = a.factors ? a.factors.ptr<float>() : nullptr;
      float* y = a.y.row<float>(row);
      for (int64_t c = 0; c < columns; c += kLanes) {
        const int64_t n = columns - c;
        F32 v = load(x + c, n);
        if (factors != nullptr) v = v * load(factors + c, n);
        if (b != nullptr) v = v + load(b + c, n);
        store(y + c, factor * v, n);
      }
    }
  });
}

void run(Cpu cpu, const SiluGateForward& a) {
  const F32 one = broadcast(1.0f), none = zero();
  const int64_t columns = a.y.cols();
  parallel_for(cpu.threads, a.y.rows(), kGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t c = 0; c < columns; c += kLanes) {
        const int64_t n = columns - c;
        store(a.y.row<float>(row) + c,
              load(a.x.row<float>(row) + c, n) * silu(load(a.z.row<float>(row) + c, n), one, none), n);
      }
    }
  });
}

}  // namespace elapid
