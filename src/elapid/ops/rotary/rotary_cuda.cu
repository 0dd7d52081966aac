#include "elapid/cuda/elements.cuh"
#include "elapid/ops/rotary/rotary.h"

namespace elapid {
namespace {

struct Angles {
  const float* inverse_frequencies;
  const int64_t *offsets, *past;  // past may be null
  int64_t sequences, n;
  double factor;
  float* turns;  // [T, 2, n]: cosines, then sines

  template <int N>
  __device__ void run(int64_t token, int64_t first) const {
    for (int64_t i = first; i < first + N; ++i) turn(token, i);
  }

  __device__ void turn(int64_t token, int64_t i) const {
    int64_t low = 0, high = sequences;  // the last sequence that begins at or before the token
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (offsets[middle] <= token ? low : high) = middle;
    }
    const int64_t position = (past != nullptr ? past[low] : 0) + token - offsets[low];
    double sine = 0, cosine = 0;
    sincos(static_cast<double>(position) * static_cast<double>(inverse_frequencies[i]), &sine, &cosine);
    turns[token * 2 * n + i] = static_cast<float>(cosine * factor);
    turns[token * 2 * n + n + i] = static_cast<float>(sine * factor);
  }
};

// An element of the first half of what turns has its partner turned with it; so x and y may be one.
template <class T>
struct Turn {
  cuda::Rows<const T> x;
  cuda::Rows<T> y;
  const float* turns;
  int64_t head_dim, n;
  float alpha;
  bool interleaved;

  template <int N>
  __device__ void run(int64_t token, int64_t first) const {
    for (int64_t column = first; column < first + N; ++column) turn(token, column);
  }

  __device__ void turn(int64_t token, int64_t column) const {
    const int64_t d = column % head_dim, head = column - d;
    if (d >= 2 * n) {
      *y.at(token, column) = cuda::from_float<T>(alpha * cuda::to_float(*x.at(token, column)));
      return;
    }
    if (d >= n) return;
    const int64_t a = head + (interleaved ? 2 * d : d), b = interleaved ? a + 1 : a + n;
    const float cosine = turns[token * 2 * n + d], sine = turns[token * 2 * n + n + d];
    const float at_a = cuda::to_float(*x.at(token, a)), at_b = cuda::to_float(*x.at(token, b));
    *y.at(token, a) = cuda::from_float<T>(at_a * cosine - at_b * sine);
    *y.at(token, b) = cuda::from_float<T>(at_b * cosine + at_a * sine);
  }
};

}  // namespace

void run(Cuda gpu, const RotaryForward& a) {
  const int64_t tokens = a.x.rows(), n = a.inverse_frequencies.size();
  float* turns = cuda::data_of<float>(a.turns);
  constexpr bool kSingle = false;
  cuda::for_elements(gpu, tokens, n, kSingle,
                     Angles{cuda::data_of<const float>(a.inverse_frequencies), cuda::data_of<const int64_t>(a.offsets),
                            cuda::data_of<const int64_t>(a.past), a.offsets.size() - 1, n,
                            static_cast<double>(a.scaling) * static_cast<double>(a.alpha), turns},
                     "rotary");
  cuda::with_type(a.x.dtype, [&]<class T>() {
    cuda::for_elements(gpu, tokens, a.x.cols(), kSingle,
                       Turn<T>{a.x, a.y, turns, a.head_dim, n, a.alpha, a.interleaved}, "rotary");
  });
}

}  // namespace elapid
