#include "elapid/cpu/simd.h"
#include "elapid/ops/cross_entropy/cross_entropy.h"

namespace elapid {

void run(Cpu cpu, const CrossEntropyForward& a) {
  const int64_t vocab = a.logits.cols();
  parallel_for(cpu.threads, a.logits.rows(), 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t label = a.labels.ptr<int64_t>()[row];
      float* nll = a.nll.ptr<float>() + row;
      if (label == kIgnoreLabel) {
        *nll = 0;
        continue;
      }
      const float* x = a.logits.row<float>(row);
      const int64_t whole = vocab / kLanes * kLanes;
      F32 highest = broadcast(x[0]);
      for (int64_t v = 0; v < whole; v += kLanes) highest = max(highest, load(x + v));
      float top = max_lane(highest);
      for (int64_t v = whole; v < vocab; ++v) top = x[v] > top ? x[v] : top;
      F32 total = zero();
      for (int64_t v = 0; v < whole; v += kLanes) total = total + exp(load(x + v) - broadcast(top));
      if (whole < vocab) {
        // Lanes beyond the row must add nothing.
        alignas(64) float tail[kLanes];
        for (int64_t l = 0; l < kLanes; ++l) tail[l] = whole + l < vocab ? x[whole + l] - top : -__builtin_inff();
        total = total + exp(load(tail));
      }
      alignas(64) float log_total[kLanes];
      const float lane_total = sum(total);
      store(log_total, log(broadcast(lane_total)));
      // log() is for positive numbers: a NaN among the logits, or an infinite maximum, must not get lost in it.
      *nll = lane_total > 0 ? log_total[0] + (top - x[label]) : lane_total;
    }
  });
}

}  // namespace elapid
