#pragma once

// What the forms of the scan share. Only *_cpu.cc and *_amx.cc files include this header; as cpu/simd.h, all of it has
// internal linkage.

#include "elapid/cpu/kept.h"
#include "elapid/cpu/tile.h"
#include "elapid/ops/math.h"
#include "elapid/ops/ssd_scan/ssd_scan.h"

// Two passes. First, for every chunk and group, the scores C Bᵀ: heads of a group share them. Then every (sequence,
// head) walks its chunks in order with the state in scratch, transposed to [d_state, head_dim], so that all three
// products of a chunk have head_dim in their lanes:
//   y      = (exp(cs) ∘ C) S + (scores ∘ decay ∘ dt) x + D x
//   S_next = exp(cs_last) S + Bᵀ (w ∘ x),   w_j = dt_j · exp(cs_last − cs_j)
// cs is the running sum of dt · A within the chunk; only differences ≤ 0 are ever exponentiated.

namespace elapid {
namespace {

// e^−200 is zero in float32; a bound keeps the running sum of a chunk finite when A or dt is absurd, and −∞ − −∞ away.
constexpr float kLowestDecay = -200.0f;

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Where the state of one head is, or nowhere.
ELAPID_INLINE Kept state_of(const SsdScanForward& a, int64_t sequence, int64_t head) {
  const int64_t slot = a.slots.ptr<int64_t>()[sequence];
  if (slot < 0) return {};
  return {a.state, slot, head * a.head_dim * a.d_state, tokens_after(a.past, a.offsets, sequence)};
}

ELAPID_INLINE F32 time_step(const SsdScanForward& a, const F32& raw, float bias) {
  const F32 dt = softplus(raw + broadcast(bias), zero());
  return min(broadcast(a.in.dt_max), max(broadcast(a.in.dt_min), dt));
}

// The scalars of a chunk of one head: [kSsdChunk] each, up to length rounded up to 16.
struct ChunkScalars {
  float* dt;
  float* decay;    // cs
  float* inflow;   // exp(cs): how much of the incoming state a token sees
  float* outflow;  // dt · exp(cs_last − cs): how much of a token reaches the outgoing state

  explicit ChunkScalars(float* memory)
      : dt(memory), decay(dt + kSsdChunk), inflow(decay + kSsdChunk), outflow(inflow + kSsdChunk) {}

  ELAPID_INLINE void compute(const SsdScanForward& a, int64_t head, int64_t token, int64_t length) {
    const float a_head = a.in.A.ptr<float>()[head];
    const float bias = a.in.dt_bias ? a.in.dt_bias.ptr<float>()[head] : 0.0f;
    const int64_t rounded = ssd_padded(length);
    for (int64_t i = 0; i < rounded; ++i) dt[i] = i < length ? a.in.dt.row<float>(token + i)[head] : 0.0f;
    for (int64_t i = 0; i < rounded; i += kLanes) store(dt + i, time_step(a, load(dt + i), bias));
    float total = 0;
    for (int64_t i = 0; i < length; ++i) {
      const float step = dt[i] * a_head;
      total += step < kLowestDecay ? kLowestDecay : step;
      decay[i] = total;
    }
    for (int64_t i = length; i < rounded; ++i) decay[i] = total;
    const F32 last = broadcast(total);
    for (int64_t i = 0; i < rounded; i += kLanes) {
      const F32 cs = load(decay + i);
      store(inflow + i, exp(cs));
      store(outflow + i, exp(last - cs) * load(dt + i));
    }
  }
};

// scores[i, j] = C[i] · B[j] for j ≤ i (above the diagonal: garbage, never read unmasked). b_transposed [d_state, 64].
void chunk_scores(const SsdScanForward& a, int64_t token, int64_t length, int64_t group, float* scores,
                  float* scratch) {
  const int64_t n = a.d_state, padded = ssd_padded(length);
  for (int64_t j = 0; j < padded; ++j) {
    if (j < length) {
      const float* b = a.in.B.row<float>(token + j) + group * n;
      for (int64_t i = 0; i < n; ++i) scratch[i * kSsdChunk + j] = b[i];
    } else {
      for (int64_t i = 0; i < n; ++i) scratch[i * kSsdChunk + j] = 0;
    }
  }
  const Left c{a.in.C.row<float>(token) + group * n, a.in.C.row_stride(), 1};
  for_tiles(length, padded, [&](int64_t row, int64_t column, auto rows, auto vectors) {
    if (column >= row + rows) return;  // above the diagonal
    Tile<rows, vectors> t;
    t.clear();
    t.multiply({c.data + row * c.row_stride, c.row_stride, 1}, {scratch + column, kSsdChunk}, n);
    static_for<rows>([&](auto r) ELAPID_LAMBDA {
      static_for<vectors>(
          [&](auto v) ELAPID_LAMBDA { store(scores + (row + r) * kSsdChunk + column + v * kLanes, t.v[r][v]); });
    });
  });
}

// One head's walk over the chunks of one sequence.
class HeadScan {
 public:
  HeadScan(const SsdScanForward& a, int64_t head, float* scratch)
      : a_(a),
        head_(head),
        padded_(ssd_padded(a.head_dim)),
        group_(head / (a.in.dt.cols() / a.in.groups)),
        scalars_(scratch) {
    state_ = scratch + 4 * kSsdChunk;
    x_ = state_ + a.d_state * padded_;
    weighted_x_ = x_ + kSsdChunk * padded_;
    mixed_ = weighted_x_ + kSsdChunk * padded_;
  }

  void run(int64_t sequence) {
    const int64_t begin = a_.offsets.ptr<int64_t>()[sequence], end = a_.offsets.ptr<int64_t>()[sequence + 1];
    const Kept kept = state_of(a_, sequence, head_);
    bool carries = static_cast<bool>(kept);  // else the state is zero so far and not even stored
    if (carries) read_state(kept);
    const float* scores = a_.chunks.row<float>(a_.chunk_begin.ptr<int64_t>()[sequence] * a_.in.groups + group_);
    for (int64_t token = begin; token < end; token += kSsdChunk) {
      const int64_t length = smaller(kSsdChunk, end - token);
      prepare(token, length, scores);
      outputs(token, length, carries);
      if (kept || token + length < end) {
        advance(token, length, carries);
        carries = true;
      }
      scores += a_.in.groups * a_.chunks.cols();
    }
    if (kept) write_state(kept);
  }

 private:
  // Turned; columns beyond head_dim are zero.
  void read_state(const Kept& kept) {
    alignas(64) float lanes[kLanes];
    for (int64_t n = 0; n < a_.d_state; n += kLanes) {
      const int64_t count = smaller(kLanes, a_.d_state - n);
      for (int64_t p = 0; p < padded_; ++p) {
        store(lanes, p < a_.head_dim ? kept.get(p * a_.d_state + n, count) : zero());
        for (int64_t i = 0; i < count; ++i) state_[(n + i) * padded_ + p] = lanes[i];
      }
    }
  }
  void write_state(const Kept& kept) {
    alignas(64) float lanes[kLanes] = {};
    for (int64_t n = 0; n < a_.d_state; n += kLanes) {
      const int64_t count = smaller(kLanes, a_.d_state - n);
      for (int64_t p = 0; p < a_.head_dim; ++p) {
        for (int64_t i = 0; i < count; ++i) lanes[i] = state_[(n + i) * padded_ + p];
        kept.set(p * a_.d_state + n, load(lanes), count);
      }
    }
  }

  // Time steps, decays, the masked mixing matrix, and x both plain and weighted.
  void prepare(int64_t token, int64_t length, const float* scores) {
    const int64_t rounded = ssd_padded(length);
    scalars_.compute(a_, head_, token, length);
    for (int64_t i = 0; i < length; ++i) {
      const F32 cs = broadcast(scalars_.decay[i]), none = zero();
      float* mixed = mixed_ + i * kSsdChunk;
      for (int64_t j = 0; j <= i; j += kLanes) {
        const F32 decay = exp(min(none, cs - load(scalars_.decay + j)));
        store(mixed + j, load(scores + i * kSsdChunk + j) * decay * load(scalars_.dt + j));
      }
      // Tiles of several rows read up to the last row's diagonal.
      const int64_t filled = i / kLanes * kLanes + kLanes;
      for (int64_t j = i + 1; j < filled; ++j) mixed[j] = 0;
      for (int64_t j = filled; j < smaller(i + kTileRows, rounded); ++j) mixed[j] = 0;
    }
    for (int64_t i = 0; i < length; ++i) {
      const float* x = a_.in.x.row<float>(token + i) + head_ * a_.head_dim;
      const F32 weight = broadcast(scalars_.outflow[i]);
      for (int64_t p = 0; p < padded_; p += kLanes) {
        const F32 v = load(x + p, a_.head_dim - p);
        store(x_ + i * padded_ + p, v);
        store(weighted_x_ + i * padded_ + p, weight * v);
      }
    }
  }

  void outputs(int64_t token, int64_t length, bool carries) {
    const int64_t heads = a_.in.dt.cols(), stride = a_.in.C.row_stride();
    const float* c = a_.in.C.row<float>(token) + group_ * a_.d_state;
    const bool d_per_channel = a_.in.D && a_.in.D.size() != heads;
    for_tiles(length, padded_, [&](int64_t row, int64_t column, auto rows, auto vectors) {
      Tile<rows, vectors> t;
      t.clear();
      if (carries) {
        t.multiply({c + row * stride, stride, 1}, {state_ + column, padded_}, a_.d_state);
        static_for<rows>([&](auto r) ELAPID_LAMBDA {
          const F32 scale = broadcast(scalars_.inflow[row + r]);
          static_for<vectors>([&](auto v) ELAPID_LAMBDA { t.v[r][v] = t.v[r][v] * scale; });
        });
      }
      t.multiply({mixed_ + row * kSsdChunk, kSsdChunk, 1}, {x_ + column, padded_}, row + rows);
      static_for<vectors>([&](auto v) ELAPID_LAMBDA {
        const int64_t p = column + v * kLanes, n = a_.head_dim - p;
        F32 d = zero();
        if (a_.in.D) {
          d = d_per_channel ? load(a_.in.D.ptr<float>() + head_ * a_.head_dim + p, n)
                            : broadcast(a_.in.D.ptr<float>()[head_]);
        }
        static_for<rows>([&](auto r) ELAPID_LAMBDA {
          F32 y = t.v[r][v];
          if (a_.in.D) y = fma(d, load(x_ + (row + r) * padded_ + p), y);
          store(a_.y.row<float>(token + row + r) + head_ * a_.head_dim + p, y, n);
        });
      });
    });
  }

  void advance(int64_t token, int64_t length, bool carries) {
    const float* b = a_.in.B.row<float>(token) + group_ * a_.d_state;
    const F32 decay = broadcast(scalars_.inflow[length - 1]);
    for_tiles(a_.d_state, padded_, [&](int64_t row, int64_t column, auto rows, auto vectors) {
      Tile<rows, vectors> t;
      static_for<rows>([&](auto r) ELAPID_LAMBDA {
        static_for<vectors>([&](auto v) ELAPID_LAMBDA {
          t.v[r][v] = carries ? decay * load(state_ + (row + r) * padded_ + column + v * kLanes) : zero();
        });
      });
      t.multiply({b + row, 1, a_.in.B.row_stride()}, {weighted_x_ + column, padded_}, length);
      static_for<rows>([&](auto r) ELAPID_LAMBDA {
        static_for<vectors>(
            [&](auto v) ELAPID_LAMBDA { store(state_ + (row + r) * padded_ + column + v * kLanes, t.v[r][v]); });
      });
    });
  }

  const SsdScanForward& a_;
  int64_t head_, padded_, group_;
  ChunkScalars scalars_;
  float *state_, *x_, *weighted_x_, *mixed_;
};

// One token: the recurrence itself. The state is read and written once; y sums over d_state in the lanes.
void single_step(const SsdScanForward& a, int64_t sequence, int64_t head) {
  const int64_t t = a.offsets.ptr<int64_t>()[sequence], heads = a.in.dt.cols(), n = a.d_state;
  const int64_t group = head / (heads / a.in.groups);
  const float bias = a.in.dt_bias ? a.in.dt_bias.ptr<float>()[head] : 0.0f;
  alignas(64) float lanes[kLanes];
  store(lanes, time_step(a, broadcast(a.in.dt.row<float>(t)[head]), bias));
  const float dt = lanes[0], step = dt * a.in.A.ptr<float>()[head];
  const F32 decay = exp(broadcast(step < kLowestDecay ? kLowestDecay : step));
  const float* b = a.in.B.row<float>(t) + group * n;
  const float* c = a.in.C.row<float>(t) + group * n;
  const float* x = a.in.x.row<float>(t) + head * a.head_dim;
  float* y = a.y.row<float>(t) + head * a.head_dim;
  const Kept state = state_of(a, sequence, head);
  for (int64_t p = 0; p < a.head_dim; ++p) {
    const F32 inflow = broadcast(dt * x[p]);
    F32 total = zero();
    for (int64_t i = 0; i < n; i += kLanes) {
      F32 s = inflow * load(b + i, n - i);
      if (state) {
        s = fma(decay, state.get(p * n + i, n - i), s);
        state.set(p * n + i, s, n - i);
      }
      total = fma(s, load(c + i, n - i), total);
    }
    float value = sum(total);
    if (a.in.D) value += a.in.D.ptr<float>()[a.in.D.size() == heads ? head : head * a.head_dim + p] * x[p];
    y[p] = value;
  }
}

// The sequence that chunk `chunk` of all sequences belongs to.
ELAPID_INLINE int64_t sequence_of(const SsdScanForward& a, int64_t chunk) {
  const int64_t* chunk_begin = a.chunk_begin.ptr<int64_t>();
  int64_t low = 0, high = a.slots.size();
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (chunk_begin[middle] <= chunk ? low : high) = middle;
  }
  return low;
}

// chunk_task(token, length, group, sequence's length, memory, worker) for every chunk and group, then
// head_task(sequence, head, length, worker) for every sequence and head.
template <class ChunkTask, class HeadTask>
ELAPID_INLINE void for_scans(Cpu cpu, const SsdScanForward& a, const ChunkTask& chunk_task, const HeadTask& head_task) {
  const int64_t sequences = a.slots.size(), heads = a.in.dt.cols(), groups = a.in.groups;
  const int64_t* offsets = a.offsets.ptr<int64_t>();
  const int64_t* chunk_begin = a.chunk_begin.ptr<int64_t>();
  parallel_for(cpu.threads, chunk_begin[sequences] * groups, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t chunk = i / groups, s = sequence_of(a, chunk);
      const int64_t token = offsets[s] + (chunk - chunk_begin[s]) * kSsdChunk;
      chunk_task(token, smaller(kSsdChunk, offsets[s + 1] - token), i % groups, offsets[s + 1] - offsets[s],
                 a.chunks.ptr<float>() + i * a.chunks.cols(), worker);
    }
  });
  // A short sequence is little work for one task; a step of a whole model's state is not.
  const int64_t tokens = a.in.x.rows();
  const int64_t grain = sequences == tokens ? 1 + 16384 / (a.head_dim * a.d_state + 1) : 1;
  parallel_for(cpu.threads, sequences * heads, grain, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t s = i / heads, length = offsets[s + 1] - offsets[s];
      if (length == 1) {
        single_step(a, s, i % heads);
      } else if (length > 1) {
        head_task(s, i % heads, length, worker);
      }
    }
  });
}

}  // namespace
}  // namespace elapid
