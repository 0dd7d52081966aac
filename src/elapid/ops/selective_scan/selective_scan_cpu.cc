#include "elapid/cpu/kept.h"
#include "elapid/ops/math.h"
#include "elapid/ops/selective_scan/selective_scan.h"

// A task is a strip of neighbouring channels of one sequence, one vector of sixteen or a few. Exponentials are nearly
// all of the work, one for every token, channel and state, so what matters is that nothing waits for anything else:
//
// - Several tokens: channels are in the lanes. State and A are turned to [d_state, 16] once; then blocks of tokens, of
//   each block first the time steps (reads of x and dt from memory overlap with the logarithms), then token by token
//   the recurrence, whose d_state chains are independent and meet in L1. All three go kAbreast at a time, step by step.
// - One token: the states of a channel are in the lanes, as they lie in memory, so that each is read and written once;
//   only for the products with C are channels in the lanes.
//
// Both do the same operations on each element in the same order.

namespace elapid {
namespace {

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// A vector's four blocks of four lanes. State n belongs to block (n / 4) % 4; y is the sum over the states of each
// block, in order, and then (block 0 + block 1) + (block 2 + block 3).
constexpr int kBlocks = 4;

#if defined(ELAPID_ISA_AVX512)
ELAPID_INLINE Part part_unpack_low(Part a, Part b) { return _mm512_unpacklo_ps(a, b); }
ELAPID_INLINE Part part_unpack_high(Part a, Part b) { return _mm512_unpackhi_ps(a, b); }
// Lanes 0, 1 of a and of b; lanes 2, 3 of both: in each block.
ELAPID_INLINE Part part_low_halves(Part a, Part b) { return _mm512_shuffle_ps(a, b, 0x44); }
ELAPID_INLINE Part part_high_halves(Part a, Part b) { return _mm512_shuffle_ps(a, b, 0xee); }
// Lane k of each block in all of its lanes.
template <int k>
ELAPID_INLINE Part part_spread(Part a) {
  return _mm512_permute_ps(a, k * 0x55);
}
// Block i is the sum of the blocks of v[i].
ELAPID_INLINE F32 sum_of_blocks(const F32 (&v)[kBlocks]) {
  const auto pair = [](Part a, Part b)
                        ELAPID_LAMBDA { return _mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xdd); };
  return {pair(pair(v[0].v[0], v[1].v[0]), pair(v[2].v[0], v[3].v[0]))};
}
#elif defined(ELAPID_ISA_AVX2)
ELAPID_INLINE Part part_unpack_low(Part a, Part b) { return _mm256_unpacklo_ps(a, b); }
ELAPID_INLINE Part part_unpack_high(Part a, Part b) { return _mm256_unpackhi_ps(a, b); }
ELAPID_INLINE Part part_low_halves(Part a, Part b) { return _mm256_shuffle_ps(a, b, 0x44); }
ELAPID_INLINE Part part_high_halves(Part a, Part b) { return _mm256_shuffle_ps(a, b, 0xee); }
template <int k>
ELAPID_INLINE Part part_spread(Part a) {
  return _mm256_permute_ps(a, k * 0x55);
}
ELAPID_INLINE F32 sum_of_blocks(const F32 (&v)[kBlocks]) {
  const auto pair = [](Part a, Part b) ELAPID_LAMBDA {
    return _mm256_permute2f128_ps(a, b, 0x20) + _mm256_permute2f128_ps(a, b, 0x31);
  };
  return {pair(v[0].v[0], v[1].v[0]) + pair(v[0].v[1], v[1].v[1]),
          pair(v[2].v[0], v[3].v[0]) + pair(v[2].v[1], v[3].v[1])};
}
#else
ELAPID_INLINE Part part_unpack_low(Part a, Part b) { return _mm_unpacklo_ps(a, b); }
ELAPID_INLINE Part part_unpack_high(Part a, Part b) { return _mm_unpackhi_ps(a, b); }
ELAPID_INLINE Part part_low_halves(Part a, Part b) { return _mm_shuffle_ps(a, b, 0x44); }
ELAPID_INLINE Part part_high_halves(Part a, Part b) { return _mm_shuffle_ps(a, b, 0xee); }
template <int k>
ELAPID_INLINE Part part_spread(Part a) {
  return _mm_shuffle_ps(a, a, k * 0x55);
}
ELAPID_INLINE F32 sum_of_blocks(const F32 (&v)[kBlocks]) {
  return by_part([&](auto i) ELAPID_LAMBDA { return (v[i].v[0] + v[i].v[1]) + (v[i].v[2] + v[i].v[3]); });
}
#endif

// Turns each block of four vectors: lane k of v[i] and lane i of v[k] change places.
ELAPID_INLINE void turn_blocks(F32 (&v)[4]) {
  static_for<kParts>([&](auto p) ELAPID_LAMBDA {
    const Part a = part_unpack_low(v[0].v[p], v[1].v[p]), b = part_unpack_low(v[2].v[p], v[3].v[p]);
    const Part c = part_unpack_high(v[0].v[p], v[1].v[p]), d = part_unpack_high(v[2].v[p], v[3].v[p]);
    v[0].v[p] = part_low_halves(a, b);
    v[1].v[p] = part_high_halves(a, b);
    v[2].v[p] = part_low_halves(c, d);
    v[3].v[p] = part_high_halves(c, d);
  });
}
template <int k>
ELAPID_INLINE F32 spread(const F32& v) {
  return by_part([&](auto p) ELAPID_LAMBDA { return part_spread<k>(v.v[p]); });
}

// So many vectors' formulas hide the latency of their steps and fit the registers with their constants.
#if defined(ELAPID_ISA_AVX512)
constexpr int kAbreast = 8;
#elif defined(ELAPID_ISA_AVX2)
constexpr int kAbreast = 2;
#else
constexpr int kAbreast = 1;
#endif

// Neighbouring channels of one group.
struct Channels {
  int64_t first, count, group;

  // Those of vector v.
  ELAPID_INLINE Channels vector(int64_t v) const {
    return {first + v * kLanes, smaller(kLanes, count - v * kLanes), group};
  }
};

// to[c · to_stride + r] = from[r · from_stride + c]
void transpose(const float* from, int64_t rows, int64_t columns, int64_t from_stride, float* to, int64_t to_stride) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    const float* in = from + r * from_stride;
    int64_t c = 0;
    for (; c + 4 <= columns; c += 4) {
      __m128 v0 = _mm_loadu_ps(in + c), v1 = _mm_loadu_ps(in + from_stride + c);
      __m128 v2 = _mm_loadu_ps(in + 2 * from_stride + c), v3 = _mm_loadu_ps(in + 3 * from_stride + c);
      _MM_TRANSPOSE4_PS(v0, v1, v2, v3);
      float* out = to + c * to_stride + r;
      _mm_storeu_ps(out, v0);
      _mm_storeu_ps(out + to_stride, v1);
      _mm_storeu_ps(out + 2 * to_stride, v2);
      _mm_storeu_ps(out + 3 * to_stride, v3);
    }
    for (; c < columns; ++c) {
      for (int64_t i = 0; i < 4; ++i) to[c * to_stride + r + i] = in[i * from_stride + c];
    }
  }
  for (; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) to[c * to_stride + r] = from[r * from_stride + c];
  }
}

// The sixteen columns of a matrix that a task reads or writes. A copy of what a Tensor says, which the compiler need
// not read again after every store.
struct Columns {
  float* data;
  int64_t stride, count;

  ELAPID_INLINE F32 get(int64_t t) const { return load(data + t * stride, count); }
  ELAPID_INLINE void set(int64_t t, const F32& v) const { store(data + t * stride, v, count); }
};

// One task's operands.
struct Lanes {
  Columns x, dt, z, y;
  F32 bias, D;
  bool has_D, has_z;

  Lanes() = default;
  ELAPID_INLINE Lanes(const SelectiveScanForward& a, const Channels& ch)
      : x(columns(a.in.x, ch)),
        dt(columns(a.in.dt, ch)),
        z(columns(a.in.z, ch)),
        y(columns(a.y, ch)),
        bias(vector(a.in.dt_bias, ch)),
        D(vector(a.in.D, ch)),
        has_D(a.in.D),
        has_z(a.in.z) {}
  ELAPID_INLINE static Columns columns(const Tensor& t, const Channels& ch) {
    return {t ? t.ptr<float>() + ch.first : nullptr, t.row_stride(), ch.count};
  }
  ELAPID_INLINE static F32 vector(const Tensor& t, const Channels& ch) {
    return t ? load(t.ptr<float>() + ch.first, ch.count) : zero();
  }

  // What the recurrence wants of dt and x at `n` tokens from t on: rate = dt · log2(e), so that a decay is
  // 2^(rate · A), and inflow = dt · x.
  template <int n>
  ELAPID_INLINE void time_steps(int64_t t, float* rate, float* inflow) const {
    const Vectors<n> raw = side_by_side<n>([&](auto k) ELAPID_LAMBDA { return dt.get(t + k) + bias; });
    const Vectors<n> step = softplus(raw, zero<n>());
    static_for<n>([&](auto k) ELAPID_LAMBDA {
      const F32 own = pick<decltype(k)::value>(step);
      store(rate + k * kLanes, own * broadcast(1.44269504088896341f));
      store(inflow + k * kLanes, own * x.get(t + k));
    });
  }
  // The rest of y: D · x and the gate.
  template <int n>
  ELAPID_INLINE void finish(int64_t t, Vectors<n> v) const {
    if (has_D) {
      v = side_by_side<n>([&](auto k) ELAPID_LAMBDA { return fma(D, x.get(t + k), pick<decltype(k)::value>(v)); });
    }
    if (has_z) {
      const Vectors<n> gate = side_by_side<n>([&](auto k) ELAPID_LAMBDA { return z.get(t + k); });
      v = v * silu(gate, broadcast<n>(1.0f), zero<n>());
    }
    static_for<n>([&](auto k) ELAPID_LAMBDA { y.set(t + k, pick<decltype(k)::value>(v)); });
  }
  // A token's channels are a few lines of a page of their own, which no hardware prefetcher foresees; and rows are
  // often a power of two apart, so that few of them fit a cache's set. Hence what is read first and what later, apart.
  ELAPID_INLINE void prefetch_for_time_steps(int64_t t) const {
    __builtin_prefetch(dt.data + t * dt.stride, 0, 2);
    __builtin_prefetch(x.data + t * x.stride, 0, 2);
  }
  ELAPID_INLINE void prefetch_for_finish(int64_t t) const {
    if (has_z) __builtin_prefetch(z.data + t * z.stride, 0, 2);
    __builtin_prefetch(y.data + t * y.stride, 1, 2);
  }
};

// The first n lanes, zero in the others.
ELAPID_INLINE F32 first_lanes(const F32& v, int64_t n) {
  alignas(64) float lanes[kLanes];
  store(lanes, v);
  return load(lanes, n);
}

// f(i, Constant n) covers [0, count) with pieces of n = kAbreast, then of one.
template <class F>
ELAPID_INLINE void abreast(int64_t count, const F& f) {
  int64_t i = 0;
  for (; i + kAbreast <= count; i += kAbreast) f(i, Constant<kAbreast>{});
  if constexpr (kAbreast > 1) {
    for (; i < count; ++i) f(i, Constant<1>{});
  }
}

// One token of sixteen channels: rate, inflow, and state and A [d_state, 16]; returns y without D and gate.
ELAPID_INLINE F32 recur(int64_t d_state, const F32& rate, const F32& inflow, const float* A, float* state,
                        const float* b, const float* c) {
  F32 y[kBlocks] = {zero(), zero(), zero(), zero()};
  const auto states = [&](int64_t first, auto place, auto count) ELAPID_LAMBDA {
    constexpr int n = decltype(count)::value;
    const int64_t j = first + place;
    const auto rates = side_by_side<n>([&](auto) ELAPID_LAMBDA { return rate; });
    const auto decay =
        exp2_product(rates, side_by_side<n>([&](auto k) ELAPID_LAMBDA { return load(A + (j + k) * kLanes); }));
    static_for<n>([&](auto k) ELAPID_LAMBDA {
      float* at = state + (j + k) * kLanes;
      const F32 h = fma(pick<decltype(k)::value>(decay), load(at), inflow * broadcast(b[j + k]));
      store(at, h);
      F32& y_of_block = y[(place + k) / 4];
      y_of_block = fma(broadcast(c[j + k]), h, y_of_block);
    });
  };
  int64_t first = 0;
  for (; first + kLanes <= d_state; first += kLanes) {
    static_for<kLanes / kAbreast>([&](auto i)
                                      ELAPID_LAMBDA { states(first, Constant<i * kAbreast>{}, Constant<kAbreast>{}); });
  }
  static_for<kLanes>([&](auto place) ELAPID_LAMBDA {
    if (first + place < d_state) states(first, place, Constant<1>{});
  });
  return (y[0] + y[1]) + (y[2] + y[3]);
}

// f(channel, first state, how many) for all states of `channels` channels, up to sixteen at a time.
template <class F>
ELAPID_INLINE void for_states(int64_t channels, int64_t d_state, const F& f) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t j = 0; j < d_state; j += kLanes) f(c, j, smaller(kLanes, d_state - j));
  }
}

void several_steps(const SelectiveScanForward& a, int64_t begin, int64_t end, const Channels& strip, const Kept& kept,
                   float* scratch) {
  const int64_t n = a.d_state, vectors = (strip.count + kLanes - 1) / kLanes;
  float* A = scratch;                          // [vectors, d_state, 16]
  float* state = A + vectors * n * kLanes;     // [vectors, d_state, 16]
  float* rate = state + vectors * n * kLanes;  // [vectors, kSelectiveScanTokens, 16], then y without D and gate
  float* inflow = rate + vectors * kSelectiveScanTokens * kLanes;
  // [count, d_state], or zeros for none, to [vectors, d_state, 16].
  const auto to_lanes = [&](const float* from, int64_t stride, float* to) {
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t count = smaller(kLanes, strip.count - v * kLanes);
      float* turned = to + v * n * kLanes;
      for (int64_t i = 0; (from == nullptr || count < kLanes) && i < n * kLanes; i += kLanes) store(turned + i, zero());
      if (from != nullptr) transpose(from + v * kLanes * stride, count, n, stride, turned, kLanes);
    }
  };
  to_lanes(a.in.A.row<float>(strip.first), a.in.A.row_stride(), A);
  to_lanes(kept.floats(), n, state);
  if (kept && kept.floats() == nullptr) {
    for_states(strip.count, n, [&](int64_t c, int64_t j, int64_t count) ELAPID_LAMBDA {
      alignas(64) float states[kLanes];
      store(states, kept.get(c * n + j, count));
      for (int64_t i = 0; i < count; ++i) state[(c / kLanes * n + j + i) * kLanes + c % kLanes] = states[i];
    });
  }
  Lanes lanes[kSelectiveScanVectors];
  for (int64_t v = 0; v < vectors; ++v) lanes[v] = Lanes(a, strip.vector(v));
  const int64_t b_stride = a.in.B.row_stride(), c_stride = a.in.C.row_stride();
  const float* b = a.in.B.row<float>(begin) + strip.group * n;
  const float* c = a.in.C.row<float>(begin) + strip.group * n;
  constexpr int64_t kBlock = kSelectiveScanTokens * kLanes;
  for (; begin < end; begin += kSelectiveScanTokens) {
    const int64_t count = smaller(kSelectiveScanTokens, end - begin);
    for (int64_t v = 0; v < vectors; ++v) {
      abreast(count, [&](int64_t i, auto k) ELAPID_LAMBDA {
        lanes[v].time_steps<decltype(k)::value>(begin + i, rate + v * kBlock + i * kLanes,
                                                inflow + v * kBlock + i * kLanes);
      });
    }
    for (int64_t v = 0; v < vectors; ++v) {
      for (int64_t i = 0; i < count; ++i) {
        if (begin + i + kSelectiveScanTokens < end) lanes[v].prefetch_for_time_steps(begin + i + kSelectiveScanTokens);
        lanes[v].prefetch_for_finish(begin + i);
        float* at = rate + v * kBlock + i * kLanes;
        store(at, recur(n, load(at), load(inflow + v * kBlock + i * kLanes), A + v * n * kLanes, state + v * n * kLanes,
                        b + i * b_stride, c + i * c_stride));
      }
    }
    for (int64_t v = 0; v < vectors; ++v) {
      abreast(count, [&](int64_t i, auto k) ELAPID_LAMBDA {
        lanes[v].finish(begin + i, side_by_side<decltype(k)::value>([&](auto l) ELAPID_LAMBDA {
                          return load(rate + v * kBlock + (i + l) * kLanes);
                        }));
      });
    }
    b += count * b_stride;
    c += count * c_stride;
  }
  float* floats = kept.floats();
  for (int64_t v = 0; floats != nullptr && v < vectors; ++v) {
    const int64_t count = smaller(kLanes, strip.count - v * kLanes);
    transpose(state + v * n * kLanes, n, count, kLanes, floats + v * kLanes * n, n);
  }
  if (kept && floats == nullptr) {
    for_states(strip.count, n, [&](int64_t channel, int64_t j, int64_t count) ELAPID_LAMBDA {
      alignas(64) float states[kLanes] = {};
      for (int64_t i = 0; i < count; ++i) states[i] = state[(channel / kLanes * n + j + i) * kLanes + channel % kLanes];
      kept.set(channel * n + j, load(states), count);
    });
  }
}

void single_step(const SelectiveScanForward& a, int64_t t, const Channels& ch, const Kept& kept) {
  constexpr int kTogether = kAbreast < 4 ? kAbreast : 4;
  const Lanes lanes(a, ch);
  const int64_t n = a.d_state, decay_stride = a.in.A.row_stride();
  alignas(64) float rate[kLanes], inflow[kLanes];
  lanes.time_steps<1>(t, rate, inflow);
  const float* A = a.in.A.row<float>(ch.first);
  const float* b = a.in.B.row<float>(t) + ch.group * n;
  const float* c = a.in.C.row<float>(t) + ch.group * n;
  F32 y[kBlocks] = {zero(), zero(), zero(), zero()};  // y[i]: channels 4 i … 4 i + 3, in each block its states
  for (int64_t j = 0; j < n; j += kLanes) {
    const int64_t states = smaller(kLanes, n - j);
    const F32 b_j = load(b + j, states), c_j = load(c + j, states);
    static_for<kBlocks>([&](auto i) ELAPID_LAMBDA {
      F32 h[4];
      static_for<4 / kTogether>([&](auto part) ELAPID_LAMBDA {
        const int64_t channel = 4 * i + part * kTogether;
        const auto rates = side_by_side<kTogether>([&](auto k) ELAPID_LAMBDA { return broadcast(rate[channel + k]); });
        const auto decay =
            exp2_product(rates, side_by_side<kTogether>([&](auto k) ELAPID_LAMBDA {
                           return channel + k < ch.count ? load(A + (channel + k) * decay_stride + j, states) : zero();
                         }));
        static_for<kTogether>([&](auto k) ELAPID_LAMBDA { h[part * kTogether + k] = pick<decltype(k)::value>(decay); });
      });
      static_for<4>([&](auto k) ELAPID_LAMBDA {
        const int64_t channel = 4 * i + k;
        if (channel >= ch.count) {
          h[k] = zero();
          return;
        }
        const F32 before = kept ? kept.get(channel * n + j, states) : zero();
        h[k] = fma(h[k], before, broadcast(inflow[channel]) * b_j);
        if (kept) kept.set(channel * n + j, h[k], states);
        if (states < kLanes) h[k] = first_lanes(h[k], states);  // an infinite time step makes NaN of the others
      });
      turn_blocks(h);
      static_for<4>([&](auto k) ELAPID_LAMBDA { y[i] = fma(spread<k>(c_j), h[k], y[i]); });
    });
  }
  lanes.finish(t, sum_of_blocks(y));
}

}  // namespace

void run(Cpu cpu, const SelectiveScanForward& a) {
  const int64_t sequences = a.slots.size(), channels = a.in.x.cols(), width = channels / a.in.groups;
  const int64_t* offsets = a.offsets.ptr<int64_t>();
  const bool steps = sequences == a.in.x.rows();
  // Neighbouring lines come from memory more cheaply, unless threads would have too few tasks to share.
  int64_t strip = steps ? 1 : kSelectiveScanVectors;
  while (strip > 1 && sequences * (channels / (strip * kLanes)) < 4 * cpu.threads.size()) strip /= 2;
  strip *= kLanes;
  const int64_t strips_a_group = (width + strip - 1) / strip, strips = a.in.groups * strips_a_group;
  // A strip's step is little work for one task; a sequence is not.
  const int64_t grain = steps ? 1 + 1024 / (a.d_state + 1) : 1;
  parallel_for(cpu.threads, sequences * strips, grain, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t s = i / strips, group = i % strips / strips_a_group, offset = i % strips_a_group * strip;
      const Channels ch{group * width + offset, smaller(strip, width - offset), group};
      const int64_t slot = a.slots.ptr<int64_t>()[s];
      const Kept kept =
          slot < 0 ? Kept() : Kept(a.state, slot, ch.first * a.d_state, tokens_after(a.past, a.offsets, s));
      if (offsets[s + 1] - offsets[s] == 1) {
        for (int64_t v = 0; v * kLanes < ch.count; ++v) {
          single_step(a, offsets[s], ch.vector(v), kept + v * kLanes * a.d_state);
        }
      } else if (offsets[s + 1] > offsets[s]) {
        several_steps(a, offsets[s], offsets[s + 1], ch, kept, a.scratch.row<float>(worker));
      }
    }
  });
}

}  // namespace elapid
