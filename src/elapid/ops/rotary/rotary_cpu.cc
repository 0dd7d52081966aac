#include "elapid/cpu/simd.h"
#include "elapid/ops/rotary/rotary.h"

#include <math.h>

namespace elapid {
namespace {

// Sines and cosines of one position, once for all heads. Interleaved, each stands twice, with the sign of its lane.
void turn(const RotaryForward& a, int64_t token, int64_t position) {
  const int64_t n = a.inverse_frequencies.size();
  const float* f = a.inverse_frequencies.ptr<float>();
  const double factor = static_cast<double>(a.scaling) * static_cast<double>(a.alpha);
  float* cosines = a.turns.ptr<float>() + token * a.turns.strides[0];
  float* sines = cosines + a.turns.strides[1];
  for (int64_t i = 0; i < n; ++i) {
    const double angle = static_cast<double>(position) * static_cast<double>(f[i]);
    const auto c = static_cast<float>(factor * cos(angle)), s = static_cast<float>(factor * sin(angle));
    if (a.interleaved) {
      cosines[2 * i] = cosines[2 * i + 1] = c;
      sines[2 * i] = -s;
      sines[2 * i + 1] = s;
    } else {
      cosines[i] = c;
      sines[i] = s;
    }
  }
}

void rotate(const RotaryForward& a, int64_t token) {
  const int64_t n = a.inverse_frequencies.size(), heads = a.x.cols() / a.head_dim;
  const float* cosines = a.turns.ptr<float>() + token * a.turns.strides[0];
  const float* sines = cosines + a.turns.strides[1];
  const F32 alpha = broadcast(a.alpha);
  const bool copies = a.alpha != 1 || a.x.data != a.y.data;
  for (int64_t h = 0; h < heads; ++h) {
    const float* x = a.x.row<float>(token) + h * a.head_dim;
    float* y = a.y.row<float>(token) + h * a.head_dim;
    if (a.interleaved) {
      for (int64_t i = 0; i < 2 * n; i += kLanes) {
        const F32 v = load(x + i, 2 * n - i);
        const F32 crossed = swap_pairs(v) * load(sines + i, 2 * n - i);
        store(y + i, fma(v, load(cosines + i, 2 * n - i), crossed), 2 * n - i);
      }
    } else {
      for (int64_t i = 0; i < n; i += kLanes) {
        const F32 first = load(x + i, n - i), second = load(x + n + i, n - i);
        const F32 c = load(cosines + i, n - i), s = load(sines + i, n - i);
        store(y + i, fma(first, c, zero() - second * s), n - i);
        store(y + n + i, fma(second, c, first * s), n - i);
      }
    }
    for (int64_t d = 2 * n; copies && d < a.head_dim; d += kLanes) {
      store(y + d, alpha * load(x + d, a.head_dim - d), a.head_dim - d);
    }
  }
}

}  // namespace

void run(Cpu cpu, const RotaryForward& a) {
  const int64_t sequences = a.offsets.size() - 1;
  const int64_t* offsets = a.offsets.ptr<int64_t>();
  const int64_t grain = 1 + 8192 / (a.x.cols() + 16 * a.inverse_frequencies.size() + 1);
  parallel_for(cpu.threads, a.x.rows(), grain, [&](int64_t begin, int64_t end, int) {
    int64_t s = 0;
    for (int64_t step = sequences; step > 0; step /= 2) {  // the last sequence that begins at `begin` or before
      while (s + step < sequences && offsets[s + step] <= begin) s += step;
    }
    for (int64_t t = begin; t < end; ++t) {
      while (t >= offsets[s + 1]) ++s;
      turn(a, t, (a.past ? a.past.ptr<int64_t>()[s] : 0) + t - offsets[s]);
      rotate(a, t);
    }
  });
}

}  // namespace elapid
