#include "elapid/cpu/tile.h"
#include "elapid/ops/attention/attention.h"

// A query row is a token and a head; the rows of all heads of a group share keys and values. For a block of up to 64
// keys the keys are transposed into scratch, so that both products have a vector's worth of neighbours in their lanes:
//   scores  s[row, key] = q · Kᵀ      keys in the lanes, summed over head_dim in order
//   outputs o[row, d]   = exp(s − m) · V      head_dim in the lanes, summed over keys in order

namespace elapid {
namespace {

static_assert(kPageTokens == 64 && kTileRows <= kLanes);

constexpr float kLowest = -3.402823466e38f;  // of all floats: below every score

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// The sequence whose share of running sums includes i.
int64_t sequence_at(const Tensor& sums, int64_t i) {
  const int64_t* begin = sums.ptr<int64_t>();
  int64_t low = 0, high = sums.size() - 1;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (begin[middle] <= i ? low : high) = middle;
  }
  return low;
}

struct Rows {
  const float* data;
  int64_t stride;
  ELAPID_INLINE const float* operator[](int64_t i) const { return data + i * stride; }
};

struct Sequence {
  int64_t begin, length, slot, past;

  Sequence(const AttentionForward& a, int64_t s)
      : begin(a.offsets.ptr<int64_t>()[s]),
        length(a.offsets.ptr<int64_t>()[s + 1] - begin),
        slot(a.slots.ptr<int64_t>()[s]),
        past(a.past ? a.past.ptr<int64_t>()[s] : 0) {}
};

int64_t page_offset(const KvCache& cache, int64_t slot, int64_t position) {
  const int64_t page = cache.page_table.row<int32_t>(slot)[position / kPageTokens];
  return (page * kPageTokens + position % kPageTokens) * cache.keys.cols();
}

// Block b's keys or values of one head.
Rows block_of(const AttentionForward& a, const Sequence& s, const Tensor& fresh, const Tensor& pages, int64_t block,
              int64_t kv_head) {
  const int64_t column = kv_head * a.head_dim;
  if (s.slot < 0) return {fresh.row<float>(s.begin + block * kPageTokens) + column, fresh.row_stride()};
  return {pages.ptr<float>() + page_offset(a.cache, s.slot, block * kPageTokens) + column, pages.cols()};
}

// to[d, j] = from[j][d] for j < n; further lanes of a last vector repeat the last key.
void transpose(const Rows& from, int64_t n, int64_t head_dim, float* to) {
  for (int64_t j = 0; j < n; j += kLanes) {
    const bool full = j + kLanes <= n;
    int64_t d = 0;
    for (; d + 4 <= head_dim; d += 4) {
      F32 columns[4];
      if (full) {
        load_transposed([&](int64_t i) ELAPID_LAMBDA { return from[j + i] + d; }, columns);
      } else {
        load_transposed([&](int64_t i) ELAPID_LAMBDA { return from[smaller(j + i, n - 1)] + d; }, columns);
      }
      static_for<4>([&](auto i) ELAPID_LAMBDA { store(to + (d + i) * kPageTokens + j, columns[i]); });
    }
    for (; d < head_dim; ++d) {
      for (int64_t i = j; i < j + kLanes; ++i) to[d * kPageTokens + i] = from[smaller(i, n - 1)][d];
    }
  }
}

constexpr float kIndices[kPageTokens] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                         16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
                                         32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47,
                                         48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};

struct Summary {
  float most, total;  // m and l
};

// The first n of a row's scores become exp(s − m); the others of their vectors become zero.
template <bool full>
ELAPID_INLINE Summary weigh(float* scores, int64_t n) {
  constexpr int kVectors = kPageTokens / kLanes;
  const F32 count = broadcast(static_cast<float>(n)), lowest = broadcast(kLowest);
  F32 s[kVectors], most = lowest, total = zero();
  static_for<kVectors>([&](auto c) ELAPID_LAMBDA {
    if (!full && n <= c * kLanes) return;
    s[c] = load(scores + c * kLanes);
    // A lane of NaN may be lost here, but not in the sum.
    most = max(most, full ? s[c] : if_greater(count, load(kIndices + c * kLanes), s[c], lowest));
  });
  const float m = max_lane(max(most, lowest));
  static_for<kVectors>([&](auto c) ELAPID_LAMBDA {
    if (!full && n <= c * kLanes) return;
    F32 weight = exp(s[c] - broadcast(m));
    if (!full) weight = if_greater(count, load(kIndices + c * kLanes), weight, zero());
    store(scores + c * kLanes, weight);
    total = total + weight;
  });
  return {m, sum(total)};
}

// Factors by which what came before and what a block gave enter their sum.
struct Merge {
  F32 most, before, block;
};
ELAPID_INLINE Merge merge(const F32& most_before, const F32& most_of_block) {
  const F32 most = max(most_before, most_of_block);
  return {most, exp(most_before - most), exp(most_of_block - most)};
}

// The work of one task: query rows of one kv head against blocks of keys.
class Queries {
 public:
  Queries(const AttentionForward& a, float* scratch)
      : a_(a), head_dim_(a.head_dim), padded_(attention_padded(a.head_dim)), group_(a.in.heads / a.in.kv_heads) {
    keys_ = scratch;
    values_ = keys_ + kPageTokens * padded_;
    scores_ = values_ + kPageTokens * padded_;
    rest_ = scores_ + kLanes * kPageTokens;
  }

  // Tokens [first, first + tokens) of the sequence, the heads that read kv_head.
  void take(const Sequence& s, int64_t first, int64_t tokens, int64_t kv_head) {
    first_ = s.past + first;
    rows_ = tokens * group_;
    queries_ = rest_;
    outputs_ = queries_ + rows_ * padded_;
    most_ = outputs_ + rows_ * padded_;
    total_ = most_ + attention_padded(rows_);
    const F32 scale = broadcast(a_.in.scale);
    for (int64_t r = 0; r < rows_; ++r) {
      const float* q = a_.in.q.row<float>(s.begin + first + r / group_) + (kv_head * group_ + r % group_) * head_dim_;
      for (int64_t d = 0; d < head_dim_; d += kLanes) {
        store(queries_ + r * padded_ + d, scale * load(q + d, head_dim_ - d), head_dim_ - d);
      }
    }
  }

  void clear() {
    for (int64_t r = 0; r < rows_; ++r) {
      most_[r] = kLowest;
      total_[r] = 0;
    }
    for (int64_t i = 0; i < rows_ * padded_; i += kLanes) store(outputs_ + i, zero());
  }

  // The rows that see keys of block `block`, which has n of them, from `keys` and `values`. With `partials`, what the
  // block gives row r is put into row r of them; else it is merged into what is here.
  void attend(int64_t block, int64_t n, const Rows& keys, Rows values, float* partials) {
    const int64_t first_key = block * kPageTokens, stride = padded_ + kLanes;
    transpose(keys, n, head_dim_, keys_);
    const int64_t begin = larger(0, first_key - first_) * group_;
    // Values that are read once are read where they are.
    if (rows_ - begin > kTileRows || padded_ != head_dim_) {
      for (int64_t j = 0; j < n; ++j) {
        for (int64_t d = 0; d < padded_; d += kLanes) {
          store(values_ + j * padded_ + d, load(values[j] + d, head_dim_ - d));
        }
      }
      values = {values_, padded_};
    }
    for (int64_t row = begin; row < rows_; row += kTileRows) {
      const int64_t height = smaller(kTileRows, rows_ - row);
      int64_t seen[kTileRows];  // keys of this block
      for (int64_t r = 0; r < height; ++r) seen[r] = smaller(n, first_ + (row + r) / group_ + 1 - first_key);
      score(row, height, seen[height - 1]);
      alignas(64) float most[kLanes] = {}, total[kLanes] = {};
      for (int64_t r = 0; r < height; ++r) {
        float* scores = scores_ + r * kPageTokens;
        const Summary summary = seen[r] == kPageTokens ? weigh<true>(scores, seen[r]) : weigh<false>(scores, seen[r]);
        most[r] = summary.most;
        total[r] = summary.total;
      }
      if (partials != nullptr) {
        for (int64_t r = 0; r < height; ++r) {
          partials[(row + r) * stride] = most[r];
          partials[(row + r) * stride + 1] = total[r];
        }
        accumulate(height, seen, values, [&](int64_t r, int64_t column, const F32& o) ELAPID_LAMBDA {
          store(partials + (row + r) * stride + kLanes + column, o);
        });
        continue;
      }
      const Merge m = merge(load(most_ + row, height), load(most));
      store(most_ + row, m.most, height);
      store(total_ + row, fma(load(total), m.block, load(total_ + row, height) * m.before), height);
      alignas(64) float before[kLanes], now[kLanes];
      store(before, m.before);
      store(now, m.block);
      accumulate(height, seen, values, [&](int64_t r, int64_t column, const F32& o) ELAPID_LAMBDA {
        float* output = outputs_ + (row + r) * padded_ + column;
        store(output, fma(o, broadcast(now[r]), load(output) * broadcast(before[r])));
      });
    }
  }

  void finish(const Sequence& s, int64_t first, int64_t kv_head) {
    for (int64_t r = 0; r < rows_; ++r) {
      float* y = a_.y.row<float>(s.begin + first + r / group_) + (kv_head * group_ + r % group_) * head_dim_;
      const F32 total = broadcast(total_[r]);
      for (int64_t d = 0; d < head_dim_; d += kLanes) {
        store(y + d, load(outputs_ + r * padded_ + d) / total, head_dim_ - d);
      }
    }
  }

 private:
  void score(int64_t row, int64_t height, int64_t n) {
    for_tiles(height, attention_padded(n), [&](int64_t, int64_t column, auto rows, auto vectors) {
      Tile<rows, vectors> t;
      t.clear();
      t.multiply({queries_ + row * padded_, padded_, 1}, {keys_ + column, kPageTokens}, head_dim_);
      static_for<rows>([&](auto r) ELAPID_LAMBDA {
        static_for<vectors>([&](auto v)
                                ELAPID_LAMBDA { store(scores_ + r * kPageTokens + column + v * kLanes, t.v[r][v]); });
      });
    });
  }

  // take(row, column, o) for every vector of the tile's outputs.
  template <class Take>
  ELAPID_INLINE void accumulate(int64_t height, const int64_t* seen, const Rows& values, const Take& take) {
    for_tiles(height, padded_, [&](int64_t, int64_t column, auto rows, auto vectors) {
      Tile<rows, vectors> t;
      t.clear();
      t.multiply({scores_, kPageTokens, 1}, {values.data + column, values.stride}, seen[0]);
      // Later rows see more. Not even zeros of what a row does not see are added: it may be NaN.
      static_for<rows>([&](auto r) ELAPID_LAMBDA {
        for (int64_t j = seen[0]; j < seen[r]; ++j) {
          const F32 weight = broadcast(scores_[r * kPageTokens + j]);
          static_for<vectors>(
              [&](auto v) ELAPID_LAMBDA { t.v[r][v] = fma(weight, load(values[j] + column + v * kLanes), t.v[r][v]); });
        }
        static_for<vectors>([&](auto v) ELAPID_LAMBDA { take(r, column + v * kLanes, t.v[r][v]); });
      });
    });
  }

  const AttentionForward& a_;
  int64_t head_dim_, padded_, group_;
  int64_t first_ = 0, rows_ = 0;      // position of the first token; query rows
  float *keys_, *values_, *scores_;   // [head_dim, 64], [64, padded], [kTileRows, 64]
  float *rest_, *queries_ = nullptr;  // [rows, padded]
  float *outputs_ = nullptr, *most_ = nullptr, *total_ = nullptr;
};

// Block `block` for all heads of a sequence of few rows.
void key_block(const AttentionForward& a, int64_t sequence, int64_t block, float* scratch) {
  const Sequence s(a, sequence);
  const int64_t n = smaller(kPageTokens, s.past + s.length - block * kPageTokens);
  const int64_t rows = s.length * (a.in.heads / a.in.kv_heads);
  Queries queries(a, scratch);
  for (int64_t h = 0; h < a.in.kv_heads; ++h) {
    queries.take(s, 0, s.length, h);
    float* partials = a.partials.row<float>(a.partial.ptr<int64_t>()[sequence] + (block * a.in.kv_heads + h) * rows);
    queries.attend(block, n, block_of(a, s, a.in.k, a.cache.keys, block, h),
                   block_of(a, s, a.in.v, a.cache.values, block, h), partials);
  }
}

// Row `row` (kv head, token, head of the group) of a sequence that was cut by keys.
void merge_blocks(const AttentionForward& a, int64_t sequence, int64_t row) {
  const Sequence s(a, sequence);
  const int64_t group = a.in.heads / a.in.kv_heads, rows = s.length * group, padded = attention_padded(a.head_dim);
  const int64_t kv_head = row / rows, token = row % rows / group, head = kv_head * group + row % group;
  const int64_t blocks = (s.past + token) / kPageTokens + 1;
  float* y = a.y.row<float>(s.begin + token) + head * a.head_dim;
  const int64_t first = a.partial.ptr<int64_t>()[sequence] + row;
  const auto partial = [&](int64_t block)
                           ELAPID_LAMBDA { return a.partials.row<float>(first + block * a.in.kv_heads * rows); };
  // Four vectors at a time: their sums stay in registers.
  for (int64_t column = 0; column < padded; column += 4 * kLanes) {
    const int64_t vectors = smaller(4, (padded - column) / kLanes);
    F32 most = broadcast(kLowest), total = zero(), o[4] = {zero(), zero(), zero(), zero()};
    for (int64_t b = 0; b < blocks; ++b) {
      const float* p = partial(b);
      const Merge m = merge(most, broadcast(p[0]));
      most = m.most;
      total = fma(broadcast(p[1]), m.block, total * m.before);
      static_for<4>([&](auto v) ELAPID_LAMBDA {
        if (v < vectors) o[v] = fma(load(p + kLanes + column + v * kLanes), m.block, o[v] * m.before);
      });
    }
    static_for<4>([&](auto v) ELAPID_LAMBDA {
      const int64_t d = column + v * kLanes;
      if (v < vectors) store(y + d, o[v] / total, a.head_dim - d);
    });
  }
}

// Task `task` of a sequence of many rows: a kv head, and a block of query tokens, the last ones first as they have most
// keys.
void query_block(const AttentionForward& a, int64_t sequence, int64_t task, float* scratch) {
  const Sequence s(a, sequence);
  const int64_t blocks = (s.length + a.query_tokens - 1) / a.query_tokens;
  const int64_t kv_head = task / blocks, first = (blocks - 1 - task % blocks) * a.query_tokens;
  const int64_t tokens = smaller(a.query_tokens, s.length - first), keys = s.past + first + tokens;
  Queries queries(a, scratch);
  queries.take(s, first, tokens, kv_head);
  queries.clear();
  for (int64_t b = 0; b * kPageTokens < keys; ++b) {
    queries.attend(b, smaller(kPageTokens, keys - b * kPageTokens), block_of(a, s, a.in.k, a.cache.keys, b, kv_head),
                   block_of(a, s, a.in.v, a.cache.values, b, kv_head), nullptr);
  }
  queries.finish(s, first, kv_head);
}

}  // namespace

void run(Cpu cpu, const AttentionForward& a) {
  const int64_t sequences = a.slots.size(), tokens = a.in.q.rows(), width = a.in.k.cols();
  if (tokens == 0) return;
  const size_t bytes = static_cast<size_t>(width) * sizeof(float);
  if (a.cache.keys) {
    parallel_for(cpu.threads, tokens, 1 + 16384 / (width + 1), [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; ++t) {
        const Sequence s(a, sequence_at(a.offsets, t));
        if (s.slot < 0) continue;
        const int64_t at = page_offset(a.cache, s.slot, s.past + t - s.begin);
        std::memcpy(a.cache.keys.ptr<float>() + at, a.in.k.row<float>(t), bytes);
        std::memcpy(a.cache.values.ptr<float>() + at, a.in.v.row<float>(t), bytes);
      }
    });
  }
  const int64_t group = a.in.heads / a.in.kv_heads;
  parallel_for(cpu.threads, a.tasks.ptr<int64_t>()[sequences], 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t s = sequence_at(a.tasks, i), task = i - a.tasks.ptr<int64_t>()[s];
      const int64_t length = a.offsets.ptr<int64_t>()[s + 1] - a.offsets.ptr<int64_t>()[s];
      if (length * group <= kFewQueryRows) {
        key_block(a, s, task, a.scratch.row<float>(worker));
      } else {
        query_block(a, s, task, a.scratch.row<float>(worker));
      }
    }
  });
  const int64_t merges = a.merges.ptr<int64_t>()[sequences];
  if (merges == 0) return;
  const int64_t grain = 1 + 16384 * merges / (a.partials.size() + 1);
  parallel_for(cpu.threads, merges, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t s = sequence_at(a.merges, i);
      merge_blocks(a, s, i - a.merges.ptr<int64_t>()[s]);
    }
  });
}

void run(Cpu cpu, const AttentionWeights& a) {
  const int64_t group = a.in.heads / a.in.kv_heads, most = a.past + a.tokens;
  parallel_for(cpu.threads, a.in.heads * a.tokens, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / a.tokens, token = i % a.tokens, column = head / group * a.head_dim;
      const int64_t keys = a.past + token + 1;
      const float* q = a.in.q.row<float>(a.begin + token) + head * a.head_dim;
      float* weights = a.weights.ptr<float>() + i * most;
      F32 largest = broadcast(kLowest);
      for (int64_t j = 0; j < keys; ++j) {
        const float* k = (j < a.past ? a.cache.keys.ptr<float>() + page_offset(a.cache, a.slot, j)
                                     : a.in.k.row<float>(a.begin + j - a.past)) +
                         column;
        F32 products = zero();
        for (int64_t d = 0; d < a.head_dim; d += kLanes) {
          products = fma(load(q + d, a.head_dim - d), load(k + d, a.head_dim - d), products);
        }
        weights[j] = a.in.scale * sum(products);
        largest = max(largest, broadcast(weights[j]));
      }
      F32 total = zero();
      for (int64_t j = 0; j < keys; j += kLanes) {
        store(weights + j, exp(load(weights + j, keys - j) - largest), keys - j);
        total = total + load(weights + j, keys - j);
      }
      total = broadcast(sum(total));
      for (int64_t j = 0; j < keys; j += kLanes) store(weights + j, load(weights + j, keys - j) / total, keys - j);
      for (int64_t j = keys; j < most; ++j) weights[j] = 0;
    }
  });
}

}  // namespace elapid
