#include "elapid/cpu/simd.h"
#include "elapid/ops/causal_conv1d/causal_conv1d.h"
#include "elapid/ops/math.h"

namespace elapid {
namespace {

// Sequence that holds token t.
int64_t sequence_of(const int64_t* offsets, int64_t sequences, int64_t t) {
  int64_t low = 0, high = sequences - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (offsets[middle] <= t) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

template <bool with_silu>
void outputs(const CausalConv1dForward& a, int64_t begin, int64_t end) {
  const int64_t taps = a.weight.rows(), channels = a.x.cols(), sequences = a.slots.size();
  const int64_t* offsets = a.offsets.ptr<int64_t>();
  const F32 one = broadcast(1.0f), none = zero();
  int64_t s = sequence_of(offsets, sequences, begin);
  for (int64_t t = begin; t < end; ++t) {
    while (t >= offsets[s + 1]) ++s;
    const int64_t slot = a.slots.ptr<int64_t>()[s];
    // Inputs that do not exist are left out, not multiplied as zeros.
    const float* inputs[kMostConvTaps];
    int64_t first = 0;
    for (int64_t k = 0; k < taps; ++k) {
      const int64_t at = t - offsets[s] - (taps - 1) + k;  // position within the sequence
      if (at >= 0) {
        inputs[k] = a.x.row<float>(offsets[s] + at);
      } else if (slot >= 0) {
        inputs[k] = a.state.ptr<float>() + (slot * (taps - 1) + (taps - 1) + at) * channels;
      } else {
        first = k + 1;
      }
    }
    float* y = a.y.row<float>(t);
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t n = channels - c;
      F32 acc = a.bias ? load(a.bias.ptr<float>() + c, n) : none;
      for (int64_t k = first; k < taps; ++k)
        acc = fma(load(a.weight.row<float>(k) + c, n), load(inputs[k] + c, n), acc);
      if constexpr (with_silu) acc = silu(acc, one, none);
      store(y + c, acc, n);
    }
  }
}

// Shifts the window of sequence s: its last K−1 inputs, from the old window where the sequence is shorter.
void keep_window(const CausalConv1dForward& a, int64_t s) {
  const int64_t slot = a.slots.ptr<int64_t>()[s];
  if (slot < 0) return;
  const int64_t kept = a.weight.rows() - 1, channels = a.x.cols();
  const int64_t begin = a.offsets.ptr<int64_t>()[s], length = a.offsets.ptr<int64_t>()[s + 1] - begin;
  if (length == 0) return;
  float* window = a.state.ptr<float>() + slot * kept * channels;
  const size_t row_bytes = static_cast<size_t>(channels) * sizeof(float);
  for (int64_t j = 0; j < kept; ++j) {  // oldest first: a row is read before it is overwritten
    const int64_t at = length - kept + j;
    const float* from = at >= 0 ? a.x.row<float>(begin + at) : window + (j + length) * channels;
    std::memcpy(window + j * channels, from, row_bytes);
  }
}

}  // namespace

void run(Cpu cpu, const CausalConv1dForward& a) {
  if (a.x.rows() == 0) return;
  const int64_t grain = 1 + 16384 / (a.x.cols() + 1);  // some tens of µs
  parallel_for(cpu.threads, a.x.rows(), grain, [&](int64_t begin, int64_t end, int) {
    a.silu ? outputs<true>(a, begin, end) : outputs<false>(a, begin, end);
  });
  if (!a.state || a.weight.rows() == 1) return;
  // Only now: the first tokens of every sequence have read the old windows.
  parallel_for(cpu.threads, a.slots.size(), 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t s = begin; s < end; ++s) keep_window(a, s);
  });
}

}  // namespace elapid
