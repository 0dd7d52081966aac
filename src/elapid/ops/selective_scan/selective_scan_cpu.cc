#include "elapid/cpu/simd.h"
#include "elapid/ops/math.h"
#include "elapid/ops/selective_scan/selective_scan.h"

// A task is sixteen channels of one sequence. Exponentials are nearly all of the work, one for every token, channel and
// state, so what matters is that nothing waits for anything else:
//
// - Several tokens: channels are in the lanes. State and A are turned to [d_state, 16] once; then blocks of tokens, of
//   each block first the time steps (reads of x and dt from memory overlap with the logarithms), then token by token
//   the recurrence, whose d_state chains are independent and meet in L1.
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

// Up to sixteen neighbouring channels of one group.
struct Channels {
  int64_t first, count, group;
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

  // What the recurrence wants of dt and x: rate = dt · log2(e), so that a decay is 2^(rate · A), and inflow = dt · x.
  ELAPID_INLINE void time_step(int64_t t, float* rate, float* inflow) const {
    const F32 step = softplus(dt.get(t) + bias, zero());
    store(rate, step * broadcast(1.44269504088896341f));
    store(inflow, step * x.get(t));
  }
  // The rest of y: D · x and the gate.
  ELAPID_INLINE void finish(int64_t t, F32 v) const {
    if (has_D) v = fma(D, x.get(t), v);
    if (has_z) v = v * silu(z.get(t), broadcast(1.0f), zero());
    y.set(t, v);
  }
  // A token's sixteen channels are one line of a page of their own, which no hardware prefetcher foresees.
  ELAPID_INLINE void prefetch(int64_t t) const {
    __builtin_prefetch(dt.data + t * dt.stride, 0, 2);
    __builtin_prefetch(x.data + t * x.stride, 0, 2);
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

ELAPID_INLINE F32 next_state(const F32& rate, const F32& A, const F32& state, const F32& inflow, const F32& b) {
  return fma(exp2_product(rate, A), state, inflow * b);
}

void several_steps(const SelectiveScanForward& a, int64_t begin, int64_t end, const Channels& ch, float* kept,
                   float* scratch) {
  const Lanes lanes(a, ch);
  const int64_t n = a.d_state;
  float* A = scratch;                // [d_state, 16]
  float* state = A + n * kLanes;     // [d_state, 16]
  float* rate = state + n * kLanes;  // [kSelectiveScanTokens, 16], then y without D and gate
  float* inflow = rate + kSelectiveScanTokens * kLanes;
  if (kept == nullptr || ch.count < kLanes) {
    for (int64_t i = 0; i < n * kLanes; i += kLanes) store(state + i, zero());
  }
  if (ch.count < kLanes) {
    for (int64_t i = 0; i < n * kLanes; i += kLanes) store(A + i, zero());
  }
  transpose(a.in.A.row<float>(ch.first), ch.count, n, a.in.A.row_stride(), A, kLanes);
  if (kept != nullptr) transpose(kept, ch.count, n, n, state, kLanes);
  const int64_t b_stride = a.in.B.row_stride(), c_stride = a.in.C.row_stride();
  const float* b = a.in.B.row<float>(begin) + ch.group * n;
  const float* c = a.in.C.row<float>(begin) + ch.group * n;
  for (; begin < end; begin += kSelectiveScanTokens) {
    const int64_t count = smaller(kSelectiveScanTokens, end - begin);
    for (int64_t i = 0; i < count; ++i) lanes.time_step(begin + i, rate + i * kLanes, inflow + i * kLanes);
    for (int64_t i = 0; i < count; ++i) {
      if (begin + i + kSelectiveScanTokens < end) lanes.prefetch(begin + i + kSelectiveScanTokens);
      const F32 r = load(rate + i * kLanes), in = load(inflow + i * kLanes);
      F32 y[kBlocks] = {zero(), zero(), zero(), zero()};
      const auto step = [&](int64_t j, F32& y_of_block) ELAPID_LAMBDA {
        const F32 h = next_state(r, load(A + j * kLanes), load(state + j * kLanes), in, broadcast(b[j]));
        store(state + j * kLanes, h);
        y_of_block = fma(broadcast(c[j]), h, y_of_block);
      };
      for (int64_t first = 0; first < n; first += kLanes) {
        static_for<kBlocks>([&](auto q) ELAPID_LAMBDA {
          const int64_t j = first + 4 * q;
          if (j + 4 <= n) {
            static_for<4>([&](auto k) ELAPID_LAMBDA { step(j + k, y[q]); });
          } else {
            for (int64_t rest = j; rest < n; ++rest) step(rest, y[q]);
          }
        });
      }
      store(rate + i * kLanes, (y[0] + y[1]) + (y[2] + y[3]));
      b += b_stride;
      c += c_stride;
    }
    for (int64_t i = 0; i < count; ++i) lanes.finish(begin + i, load(rate + i * kLanes));
  }
  if (kept != nullptr) transpose(state, n, ch.count, kLanes, kept, n);
}

void single_step(const SelectiveScanForward& a, int64_t t, const Channels& ch, float* kept) {
  const Lanes lanes(a, ch);
  const int64_t n = a.d_state, decay_stride = a.in.A.row_stride();
  alignas(64) float rate[kLanes], inflow[kLanes];
  lanes.time_step(t, rate, inflow);
  const float* A = a.in.A.row<float>(ch.first);
  const float* b = a.in.B.row<float>(t) + ch.group * n;
  const float* c = a.in.C.row<float>(t) + ch.group * n;
  F32 y[kBlocks] = {zero(), zero(), zero(), zero()};  // y[i]: channels 4 i … 4 i + 3, in each block its states
  for (int64_t j = 0; j < n; j += kLanes) {
    const int64_t states = smaller(kLanes, n - j);
    const F32 b_j = load(b + j, states), c_j = load(c + j, states);
    static_for<kBlocks>([&](auto i) ELAPID_LAMBDA {
      F32 h[4];
      static_for<4>([&](auto k) ELAPID_LAMBDA {
        const int64_t channel = 4 * i + k;
        h[k] = zero();
        if (channel >= ch.count) return;
        float* at = kept + channel * n + j;
        const F32 before = kept == nullptr ? zero() : load(at, states);
        h[k] = next_state(broadcast(rate[channel]), load(A + channel * decay_stride + j, states), before,
                          broadcast(inflow[channel]), b_j);
        if (kept != nullptr) store(at, h[k], states);
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
  const int64_t sequences = a.slots.size(), width = a.in.x.cols() / a.in.groups;  // channels of a group
  const int64_t blocks_a_group = (width + kLanes - 1) / kLanes, blocks = a.in.groups * blocks_a_group;
  const int64_t* offsets = a.offsets.ptr<int64_t>();
  // A block's step is little work for one task; a sequence is not.
  const int64_t grain = sequences == a.in.x.rows() ? 1 + 1024 / (a.d_state + 1) : 1;
  parallel_for(cpu.threads, sequences * blocks, grain, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t s = i / blocks, block = i % blocks, group = block / blocks_a_group;
      const int64_t offset = block % blocks_a_group * kLanes;
      const Channels ch{group * width + offset, smaller(kLanes, width - offset), group};
      const int64_t slot = a.slots.ptr<int64_t>()[s];
      float* kept = slot < 0 ? nullptr : a.state.ptr<float>() + (slot * a.in.x.cols() + ch.first) * a.d_state;
      float* scratch = a.scratch.row<float>(worker);
      if (offsets[s + 1] - offsets[s] == 1) {
        single_step(a, offsets[s], ch, kept);
      } else if (offsets[s + 1] > offsets[s]) {
        several_steps(a, offsets[s], offsets[s + 1], ch, kept, scratch);
      }
    }
  });
}

}  // namespace elapid
