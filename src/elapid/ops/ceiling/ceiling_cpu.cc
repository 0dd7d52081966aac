#include "elapid/cpu/simd.h"
#include "elapid/ops/ceiling/ceiling.h"

namespace elapid {

void run(Cpu cpu, const ReadMemory& a) {
  const float* memory = a.memory.ptr<float>();
  // 1 MiB a task, in four streams that are asked for ahead: one after another, a core draws less.
  parallel_for(cpu.threads, a.memory.size(), int64_t{1} << 18, [&](int64_t begin, int64_t end, int worker) {
    F32 total[4] = {zero(), zero(), zero(), zero()};
    const int64_t stream = (end - begin) / 4;
    for (int64_t i = begin; i + kLanes <= begin + stream; i += kLanes) {
      static_for<4>([&](auto j) ELAPID_LAMBDA {
        const float* at = memory + i + j * stream;
        __builtin_prefetch(at + 1024);
        total[j] = total[j] + load(at);
      });
    }
    a.sums.ptr<float>()[worker] = sum((total[0] + total[1]) + (total[2] + total[3]));
  });
}

void run(Cpu cpu, const MultiplyAdd& a) {
  parallel_for(cpu.threads, a.sums.size(), 1, [&](int64_t, int64_t, int worker) {
    constexpr int kChains = 12 / kParts;  // as many registers at every level, more than latency × ports
    F32 acc[kChains];
    // Different values: equal chains would be computed once.
    static_for<kChains>([&](auto j) ELAPID_LAMBDA { acc[j] = broadcast(static_cast<float>(j.value)); });
    const F32 b = broadcast(0.5f), c = broadcast(1.0f);
    for (int64_t i = 0; i < a.rounds * 1024 * kParts; ++i) {
      static_for<kChains>([&](auto j) ELAPID_LAMBDA { acc[j] = fma(acc[j], b, c); });
    }
    F32 total = zero();
    static_for<kChains>([&](auto j) ELAPID_LAMBDA { total = total + acc[j]; });
    a.sums.ptr<float>()[worker] = sum(total);
  });
}

void run(Cpu cpu, const Exponentials& a) {
  parallel_for(cpu.threads, a.sums.size(), 1, [&](int64_t, int64_t, int worker) {
    F32 total[4] = {zero(), zero(), zero(), zero()};
    F32 rate = broadcast(0.01f);
    const F32 more = broadcast(1e-7f);
    for (int64_t i = 0; i < a.rounds * 1024; ++i) {
      static_for<4>([&](auto j) ELAPID_LAMBDA {
        total[j] = total[j] + exp2_product(rate, broadcast(-1.0f - static_cast<float>(j.value)));
      });
      rate = rate + more;
    }
    a.sums.ptr<float>()[worker] = sum((total[0] + total[1]) + (total[2] + total[3]));
  });
}

}  // namespace elapid
