#include "elapid/cpu/amx.h"
#include "elapid/ops/ssd_scan/ssd_scan_cpu.h"

// The chunked form with its four products, C Bᵀ, C S, (scores ∘ decay ∘ dt) x and Bᵀ (w ∘ x), in tiles. Their operands
// are bf16, as in the reference implementation's kernels; decays, sums and the state are float32.

namespace elapid {
namespace {

// to[row, column] = x · w for all row tiles and blocks, `steps` times 32 deep.
ELAPID_INLINE void product(const BFloat16* x, int64_t row_tiles, int64_t x_tile, const BFloat16* w, int64_t blocks,
                           int64_t w_block, int64_t steps, float* to, int64_t stride) {
  const auto nothing = [] {};
  for (int64_t r = 0; r < row_tiles; r += 2) {
    for (int64_t b = 0; b < blocks; b += 2) {
      const BFloat16 *rows = x + r * x_tile, *columns = w + b * w_block;
      float* out = to + r * kAmxRows * stride + b * kLanes;
      const auto tiles = [&](auto height, auto width) ELAPID_LAMBDA {
        clear_sums();
        multiply_tiles<height, width>(rows, x_tile, columns, w_block, steps, nothing);
        store_tiles<height, width>(out, stride);
      };
      const bool two_rows = r + 1 < row_tiles, two_blocks = b + 1 < blocks;
      if (two_rows && two_blocks) {
        tiles(Constant<2>{}, Constant<2>{});
      } else if (two_rows) {
        tiles(Constant<2>{}, Constant<1>{});
      } else if (two_blocks) {
        tiles(Constant<1>{}, Constant<2>{});
      } else {
        tiles(Constant<1>{}, Constant<1>{});
      }
    }
  }
}

// What the heads of a group share: scores [kSsdChunk, kSsdChunk] f32; C as rows [token tile][d_state / 32][16][32];
// Bᵀ as rows [d_state tile][token / 32][16][32].
struct Shared {
  float* scores;
  BFloat16 *c, *b_transposed;

  Shared(float* memory, int64_t d_state)
      : scores(memory),
        c(reinterpret_cast<BFloat16*>(memory + kSsdChunk * kSsdChunk)),
        b_transposed(c + kSsdChunk * ssd_depth(d_state)) {}
};

void share(const SsdScanForward& a, int64_t token, int64_t length, int64_t group, const Shared& to, float* scratch) {
  const Tiles configured;
  const int64_t n = a.d_state, depth = ssd_depth(n);
  auto* b_blocks = reinterpret_cast<BFloat16*>(scratch);
  const auto at = [&](const Tensor& t, int64_t i, int64_t k) ELAPID_LAMBDA {
    return i < length ? load(t.row<float>(token + i) + group * n + k, n - k > 0 ? n - k : 0).v[0] : _mm512_setzero_ps();
  };
  const auto pair = [&](const Tensor& t, int64_t i, int64_t k) ELAPID_LAMBDA {
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(at(t, i, k + kLanes), at(t, i, k)));
  };
  const int64_t token_tiles = ssd_padded(length) / kAmxRows;
  for (int64_t i = 0; i < token_tiles * kAmxRows; ++i) {
    BFloat16* row = to.c + (i / kAmxRows * depth) * kAmxRows + i % kAmxRows * kAmxDepth;
    for (int64_t k = 0; k < depth; k += kAmxDepth) _mm512_storeu_si512(row + k * kAmxRows, pair(a.in.C, i, k));
  }
  // Both forms of B are transposed words: pairs of d_state against tokens, pairs of tokens against d_state.
  for (int64_t j = 0; j < token_tiles; ++j) {
    for (int64_t k = 0; k < depth; k += kAmxDepth) {
      __m512i words[16];
      static_for<16>([&](auto i) ELAPID_LAMBDA { words[i] = pair(a.in.B, j * kAmxRows + i, k); });
      transpose_words(words);
      BFloat16* block = b_blocks + (j * depth + k) * kAmxRows;
      static_for<16>([&](auto i) ELAPID_LAMBDA { _mm512_storeu_si512(block + i * kAmxDepth, words[i]); });
    }
  }
  for (int64_t k = 0; k < depth; k += kAmxRows) {
    for (int64_t step = 0; step * kAmxDepth < length; ++step) {
      __m512i words[16];
      static_for<16>([&](auto i) ELAPID_LAMBDA {
        const int64_t even = step * kAmxDepth + 2 * i;
        words[i] = bf16_pairs(at(a.in.B, even, k), at(a.in.B, even + 1, k));
      });
      transpose_words(words);
      BFloat16* tile = to.b_transposed + (k / kAmxRows * (kSsdChunk / kAmxDepth) + step) * kAmxElements;
      static_for<16>([&](auto i) ELAPID_LAMBDA { _mm512_storeu_si512(tile + i * kAmxDepth, words[i]); });
    }
  }
  product(to.c, token_tiles, kAmxRows * depth, b_blocks, token_tiles, kAmxRows * depth, depth / kAmxDepth, to.scores,
          kSsdChunk);
}

// One head's walk over the chunks of one sequence.
class TileScan {
 public:
  TileScan(const SsdScanForward& a, int64_t head, float* scratch)
      : a_(a),
        head_(head),
        padded_(ssd_padded(a.head_dim)),
        depth_(ssd_depth(a.d_state)),
        group_(head / (a.in.dt.cols() / a.in.groups)),
        scalars_(scratch) {
    state_ = scratch + 4 * kSsdChunk;
    inflow_ = state_ + depth_ * padded_;
    from_state_ = inflow_ + depth_ * padded_;
    from_chunk_ = from_state_ + kSsdChunk * padded_;
    state_blocks_ = reinterpret_cast<BFloat16*>(from_chunk_ + kSsdChunk * padded_);
    x_ = state_blocks_ + depth_ * padded_;
    weighted_x_ = x_ + kSsdChunk * padded_;
    mixed_ = weighted_x_ + kSsdChunk * padded_;
  }

  void run(int64_t sequence) {
    const Tiles configured;
    const int64_t begin = a_.offsets.ptr<int64_t>()[sequence], end = a_.offsets.ptr<int64_t>()[sequence + 1];
    const Kept kept = state_of(a_, sequence, head_);
    bool carries = static_cast<bool>(kept);  // else the state is zero so far and not even stored
    if (carries) read_state(kept);
    float* shared = a_.chunks.row<float>(a_.chunk_begin.ptr<int64_t>()[sequence] * a_.in.groups + group_);
    for (int64_t token = begin; token < end; token += kSsdChunk) {
      const int64_t length = smaller(kSsdChunk, end - token);
      const Shared group(shared, a_.d_state);
      scalars_.compute(a_, head_, token, length);
      mix(token, length, group.scores);
      round_x(token, length);
      outputs(token, length, group, carries);
      if (kept || token + length < end) {
        advance(length, group, carries);
        carries = true;
      }
      shared += a_.in.groups * a_.chunks.cols();
    }
    if (kept) write_state(kept);
  }

 private:
  // Calls f(row, column) for each square of the state as kept, [head_dim, d_state].
  template <class F>
  ELAPID_INLINE void for_squares(const F& f) {
    for (int64_t p = 0; p < padded_; p += 16) {
      for (int64_t n = 0; n < depth_; n += 16) f(p, n);
    }
  }
  void read_state(const Kept& kept) {
    for_squares([&](int64_t p, int64_t n) ELAPID_LAMBDA {
      __m512i words[16];
      static_for<16>([&](auto i) ELAPID_LAMBDA {
        const bool there = p + i < a_.head_dim && n < a_.d_state;
        words[i] = _mm512_castps_si512((there ? kept.get((p + i) * a_.d_state + n, a_.d_state - n) : zero()).v[0]);
      });
      transpose_words(words);
      static_for<16>([&](auto i) ELAPID_LAMBDA { _mm512_storeu_si512(state_ + (n + i) * padded_ + p, words[i]); });
    });
    for (int64_t n = 0; n < depth_; n += 2) round_state(n);
  }
  void write_state(const Kept& kept) {
    for_squares([&](int64_t p, int64_t n) ELAPID_LAMBDA {
      __m512i words[16];
      static_for<16>([&](auto i) ELAPID_LAMBDA { words[i] = _mm512_loadu_si512(state_ + (n + i) * padded_ + p); });
      transpose_words(words);
      static_for<16>([&](auto i) ELAPID_LAMBDA {
        if (p + i >= a_.head_dim || n >= a_.d_state) return;
        kept.set((p + i) * a_.d_state + n, {_mm512_castsi512_ps(words[i])}, a_.d_state - n);
      });
    });
  }
  // Rows n and n + 1 of the state, as blocks that C meets.
  ELAPID_INLINE void round_state(int64_t n) {
    for (int64_t p = 0; p < padded_; p += kLanes) {
      const float* s = state_ + n * padded_ + p;
      _mm512_storeu_si512(state_blocks_ + p * depth_ + n * kLanes,
                          bf16_pairs(_mm512_loadu_ps(s), _mm512_loadu_ps(s + padded_)));
    }
  }

  // Asks for a head's part of a row, to write it or not: rows lie pages apart, where nothing else foresees the next
  // one.
  template <int writes>
  ELAPID_INLINE void ask(const float* row) const {
    for (int64_t p = 0; p < a_.head_dim; p += kLanes) __builtin_prefetch(row + head_ * a_.head_dim + p, writes);
  }

  // scores ∘ decay ∘ dt as rows [token tile][token / 32][16][32]. Left of the diagonal tile, exp(cs_i − cs_j) is
  // exp(cs_i − cs_m) · exp(cs_m − cs_j) with m between them: two factors for each row and column, of which neither
  // overflows, in place of an exp for each element.
  void mix(int64_t token, int64_t length, const float* scores) {
    const F32 none = zero();
    for (int64_t first = 0; first < length; first += kAmxRows) {
      for (int64_t i = first; i < smaller(first + kAmxRows, length); ++i) ask<0>(a_.in.x.row<float>(token + i));
      BFloat16* tile = mixed_ + first * kSsdChunk;
      const F32 middle = broadcast(scalars_.decay[first > 0 ? first - 1 : 0]);
      const F32 decays = load(scalars_.decay + first), dt = load(scalars_.dt + first);
      alignas(64) float row_factor[kAmxRows], row_decay[kAmxRows];
      store(row_factor, exp(min(none, decays - middle)));
      store(row_decay, decays);
      const auto put = [&](int64_t i, int64_t j, __m512 value) ELAPID_LAMBDA {
        _mm256_storeu_si256(
            reinterpret_cast<__m256i*>(tile + j / kAmxDepth * kAmxElements + i * kAmxDepth + j % kAmxDepth),
            reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value)));
      };
      for (int64_t j = 0; j < first; j += kLanes) {
        const F32 column = exp(min(none, middle - load(scalars_.decay + j))) * load(scalars_.dt + j);
        for (int64_t i = 0; i < kAmxRows; ++i) {
          put(i, j, (load(scores + (first + i) * kSsdChunk + j) * (broadcast(row_factor[i]) * column)).v[0]);
        }
      }
      for (int64_t i = 0; i < kAmxRows; ++i) {
        const F32 decay = exp(min(none, broadcast(row_decay[i]) - decays));
        const F32 value = load(scores + (first + i) * kSsdChunk + first) * decay * dt;
        put(i, first, _mm512_maskz_mov_ps(static_cast<__mmask16>((2u << i) - 1), value.v[0]));
        if (first % kAmxDepth == 0) put(i, first + kLanes, _mm512_setzero_ps());
      }
    }
  }

  // x and w ∘ x as blocks, pairs of tokens; zero beyond the last.
  void round_x(int64_t token, int64_t length) {
    for (int64_t i = 0; i < (length + kAmxDepth - 1) / kAmxDepth * kAmxDepth; i += 2) {
      const auto row = [&](int64_t r, int64_t p) ELAPID_LAMBDA {
        if (r >= length) return _mm512_setzero_ps();
        return load(a_.in.x.row<float>(token + r) + head_ * a_.head_dim + p, a_.head_dim - p).v[0];
      };
      const __m512 even_weight = _mm512_set1_ps(i < length ? scalars_.outflow[i] : 0);
      const __m512 odd_weight = _mm512_set1_ps(i + 1 < length ? scalars_.outflow[i + 1] : 0);
      for (int64_t r = i; r < smaller(i + 2, length); ++r) ask<1>(a_.y.row<float>(token + r));
      for (int64_t p = 0; p < padded_; p += kLanes) {
        const __m512 even = row(i, p), odd = row(i + 1, p);
        const int64_t to = p * kSsdChunk + i * kLanes;
        _mm512_storeu_si512(x_ + to, bf16_pairs(even, odd));
        _mm512_storeu_si512(weighted_x_ + to, bf16_pairs(even * even_weight, odd * odd_weight));
      }
    }
  }

  void outputs(int64_t token, int64_t length, const Shared& group, bool carries) {
    const int64_t row_tiles = ssd_padded(length) / kAmxRows, blocks = padded_ / kLanes;
    if (carries) {
      product(group.c, row_tiles, kAmxRows * depth_, state_blocks_, blocks, kLanes * depth_, depth_ / kAmxDepth,
              from_state_, padded_);
    }
    // A pair of row tiles sees the tokens up to its own end.
    for (int64_t r = 0; r < row_tiles; r += 2) {
      product(mixed_ + r * kAmxRows * kSsdChunk, smaller(2, row_tiles - r), kAmxRows * kSsdChunk, x_, blocks,
              kLanes * kSsdChunk, r / 2 + 1, from_chunk_ + r * kAmxRows * padded_, padded_);
    }
    const bool d_per_channel = a_.in.D && a_.in.D.size() != a_.in.dt.cols();
    for (int64_t i = 0; i < length; ++i) {
      const float* x = a_.in.x.row<float>(token + i) + head_ * a_.head_dim;
      float* y = a_.y.row<float>(token + i) + head_ * a_.head_dim;
      const F32 scale = broadcast(scalars_.inflow[i]);
      for (int64_t p = 0; p < padded_; p += kLanes) {
        const int64_t n = a_.head_dim - p;
        F32 out = load(from_chunk_ + i * padded_ + p);
        if (carries) out = fma(scale, load(from_state_ + i * padded_ + p), out);
        if (a_.in.D) {
          const F32 d = d_per_channel ? load(a_.in.D.ptr<float>() + head_ * a_.head_dim + p, n)
                                      : broadcast(a_.in.D.ptr<float>()[head_]);
          out = fma(d, load(x + p, n), out);
        }
        store(y + p, out, n);
      }
    }
  }

  void advance(int64_t length, const Shared& group, bool carries) {
    product(group.b_transposed, depth_ / kAmxRows, kAmxRows * kSsdChunk, weighted_x_, padded_ / kLanes,
            kLanes * kSsdChunk, (length + kAmxDepth - 1) / kAmxDepth, inflow_, padded_);
    const F32 decay = broadcast(scalars_.inflow[length - 1]);
    for (int64_t n = 0; n < depth_; n += 2) {
      for (int64_t i = n * padded_; i < (n + 2) * padded_; i += kLanes) {
        const F32 in = load(inflow_ + i);
        store(state_ + i, carries ? fma(decay, load(state_ + i), in) : in);
      }
      round_state(n);
    }
  }

  const SsdScanForward& a_;
  int64_t head_, padded_, depth_, group_;
  ChunkScalars scalars_;
  float *state_, *inflow_, *from_state_, *from_chunk_;  // inflow_: what a chunk adds to the state
  BFloat16 *state_blocks_, *x_, *weighted_x_, *mixed_;
};

}  // namespace

void run(Amx cpu, const SsdScanForward& a) {
  if (a.in.arithmetic == Arithmetic::f32) return run(Avx512{cpu.threads}, a);
  for_scans(
      cpu, a,
      [&](int64_t token, int64_t length, int64_t group, int64_t whole, float* chunk, int worker) {
        float* scratch = a.scratch.row<float>(worker);
        if (whole < kSsdTiled) return chunk_scores(a, token, length, group, chunk, scratch);
        share(a, token, length, group, Shared(chunk, a.d_state), scratch);
      },
      [&](int64_t sequence, int64_t head, int64_t length, int worker) {
        float* scratch = a.scratch.row<float>(worker);
        length < kSsdTiled ? HeadScan(a, head, scratch).run(sequence) : TileScan(a, head, scratch).run(sequence);
      });
}

}  // namespace elapid
