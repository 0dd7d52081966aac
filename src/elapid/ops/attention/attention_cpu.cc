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

// A block of keys and values of one head.
struct Block {
  int64_t index, count;
  Rows keys, values;

  Block(const AttentionForward& a, const Sequence& s, int64_t index_, int64_t kv_head, int64_t end)
      : index(index_), count(smaller(kPageTokens, end - index * kPageTokens)) {
    const int64_t first = index * kPageTokens, column = kv_head * a.head_dim;
    if (s.slot < 0) {
      keys = {a.in.k.row<float>(s.begin + first) + column, a.in.k.row_stride()};
      values = {a.in.v.row<float>(s.begin + first) + column, a.in.v.row_stride()};
    } else {
      const int64_t at = page_offset(a.cache, s.slot, first) + column;
      keys = {a.cache.keys.ptr<float>() + at, a.cache.keys.cols()};
      values = {a.cache.values.ptr<float>() + at, a.cache.values.cols()};
    }
  }
};

ELAPID_INLINE void prefetch(const float* p, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) __builtin_prefetch(p + i, 0, 2);  // into the second-level cache
}

// Keys and values that a task reads next: fetched bit by bit while it computes.
class Upcoming {
 public:
  Upcoming(const Block& block, int64_t head_dim) : block_(block), width_(head_dim) {}

  // A share of one in `parts`.
  void fetch(int64_t parts) {
    const int64_t end = smaller(block_.count, next_ + (block_.count + parts - 1) / parts);
    for (; next_ < end; ++next_) {
      prefetch(block_.keys[next_], width_);
      prefetch(block_.values[next_], width_);
    }
  }

 private:
  Block block_;
  int64_t width_, next_ = 0;  // the next row
};

// to[d, j] = from[j][d] for begin ≤ j < end; further lanes of a last vector repeat the last key.
void transpose(const Rows& from, int64_t begin, int64_t end, int64_t head_dim, float* to) {
  for (int64_t j = begin; j < end; j += kLanes) {
    const bool full = j + kLanes <= end;
    int64_t d = 0;
    for (; d + 4 <= head_dim; d += 4) {
      F32 columns[4];
      if (full) {
        load_transposed([&](int64_t i) ELAPID_LAMBDA { return from[j + i] + d; }, columns);
      } else {
        load_transposed([&](int64_t i) ELAPID_LAMBDA { return from[smaller(j + i, end - 1)] + d; }, columns);
      }
      static_for<4>([&](auto i) ELAPID_LAMBDA { store(to + (d + i) * kPageTokens + j, columns[i]); });
    }
    for (; d < head_dim; ++d) {
      for (int64_t i = j; i < j + kLanes; ++i) to[d * kPageTokens + i] = from[smaller(i, end - 1)][d];
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
ELAPID_INLINE Summary weigh_some(float* scores, int64_t n) {
  constexpr int kVectors = kPageTokens / kLanes;
  const F32 count = broadcast(static_cast<float>(n)), lowest = broadcast(kLowest);
  F32 most = lowest, total = zero();
  static_for<kVectors>([&](auto c) ELAPID_LAMBDA {
    if (!full && n <= c * kLanes) return;
    const F32 s = load(scores + c * kLanes);
    // A lane of NaN may be lost here, but not in the sum.
    most = max(most, full ? s : if_greater(count, load(kIndices + c * kLanes), s, lowest));
  });
  const float m = max_lane(max(most, lowest));
  static_for<kVectors>([&](auto c) ELAPID_LAMBDA {
    if (!full && n <= c * kLanes) return;
    F32 weight = exp(load(scores + c * kLanes) - broadcast(m));
    if (!full) weight = if_greater(count, load(kIndices + c * kLanes), weight, zero());
    store(scores + c * kLanes, weight);
    total = total + weight;
  });
  return {m, sum(total)};
}

Summary weigh(float* scores, int64_t n) {
  return n == kPageTokens ? weigh_some<true>(scores, n) : weigh_some<false>(scores, n);
}

// Factors by which what came before and what a block gave enter their sum.
struct Merge {
  F32 most, before, block;
};
ELAPID_INLINE Merge merge(const F32& most_before, const F32& most_of_block) {
  const F32 most = max(most_before, most_of_block);
  return {most, exp(most_before - most), exp(most_of_block - most)};
}

// scores[r, j] = queries[r] · keys[·, j] for a tile of rows and the first n keys, rounded up to whole vectors.
ELAPID_INLINE void score(const float* queries, int64_t query_stride, const float* keys, int64_t head_dim,
                         int64_t height, int64_t n, float* scores) {
  for_tiles(height, attention_padded(n), [&](int64_t, int64_t column, auto rows, auto vectors) {
    Tile<rows, vectors> t;
    t.clear();
    t.multiply({queries, query_stride, 1}, {keys + column, kPageTokens}, head_dim);
    static_for<rows>([&](auto r) ELAPID_LAMBDA {
      static_for<vectors>([&](auto v)
                              ELAPID_LAMBDA { store(scores + r * kPageTokens + column + v * kLanes, t.v[r][v]); });
    });
  });
}

// Adds weights[r, j] · values[j] for j in [begin, end[r]) to o[r] in order, for a tile of rows whose ends do not
// decrease. start(row, column) and take(row, column, o) read and write a vector of o.
template <class Start, class Take>
ELAPID_INLINE void accumulate(const float* weights, const Rows& values, int64_t begin, const int64_t* end,
                              int64_t height, int64_t columns, const Start& start, const Take& take) {
  for_tiles(height, columns, [&](int64_t, int64_t column, auto rows, auto vectors) {
    Tile<rows, vectors> t;
    static_for<rows>([&](auto r) ELAPID_LAMBDA {
      static_for<vectors>([&](auto v) ELAPID_LAMBDA { t.v[r][v] = start(r, column + v * kLanes); });
    });
    const int64_t common = larger(begin, end[0]);
    t.multiply({weights + begin, kPageTokens, 1}, {values[begin] + column, values.stride}, common - begin);
    static_for<rows>([&](auto r) ELAPID_LAMBDA {
      // Not even zeros of what a row does not see are added: it may be NaN.
      for (int64_t j = common; j < end[r]; ++j) {
        const F32 weight = broadcast(weights[r * kPageTokens + j]);
        static_for<vectors>(
            [&](auto v) ELAPID_LAMBDA { t.v[r][v] = fma(weight, load(values[j] + column + v * kLanes), t.v[r][v]); });
      }
      static_for<vectors>([&](auto v) ELAPID_LAMBDA { take(r, column + v * kLanes, t.v[r][v]); });
    });
  });
}

// Queries of tokens [first, …) of a sequence, all heads that read kv_head, times scale.
void load_queries(const AttentionForward& a, const Sequence& s, int64_t first, int64_t kv_head, int64_t rows,
                  float* queries) {
  const int64_t group = a.in.heads / a.in.kv_heads, padded = attention_padded(a.head_dim);
  const F32 scale = broadcast(a.in.scale);
  for (int64_t r = 0; r < rows; ++r) {
    const float* q = a.in.q.row<float>(s.begin + first + r / group) + (kv_head * group + r % group) * a.head_dim;
    for (int64_t d = 0; d < a.head_dim; d += kLanes) {
      store(queries + r * padded + d, scale * load(q + d, a.head_dim - d), a.head_dim - d);
    }
  }
}

// Rows [begin, end) of a block's values, side by side and padded.
void pack_values(const Rows& from, int64_t begin, int64_t end, int64_t head_dim, float* to) {
  const int64_t padded = attention_padded(head_dim);
  for (int64_t j = begin; j < end; ++j) {
    for (int64_t d = 0; d < padded; d += kLanes) store(to + j * padded + d, load(from[j] + d, head_dim - d));
  }
}

// Task `task` of a sequence of many rows: a kv head, and a block of query tokens, the last ones first as they have most
// keys. Blocks of keys are merged as they come.
class QueryBlock {
 public:
  QueryBlock(const AttentionForward& a, int64_t sequence, int64_t task, float* scratch)
      : a_(a), s_(a, sequence), group_(a.in.heads / a.in.kv_heads), padded_(attention_padded(a.head_dim)) {
    const int64_t blocks = (s_.length + a.query_tokens - 1) / a.query_tokens;
    kv_head_ = task / blocks;
    first_ = (blocks - 1 - task % blocks) * a.query_tokens;
    rows_ = smaller(a.query_tokens, s_.length - first_) * group_;
    keys_ = scratch;
    values_ = keys_ + kPageTokens * padded_;
    weights_ = values_ + kPageTokens * padded_;
    queries_ = weights_ + kTileRows * kPageTokens;
    outputs_ = queries_ + rows_ * padded_;
    most_ = outputs_ + rows_ * padded_;
    total_ = most_ + rows_;
  }

  void run() {
    load_queries(a_, s_, first_, kv_head_, rows_, queries_);
    for (int64_t r = 0; r < rows_; ++r) {
      most_[r] = kLowest;
      total_[r] = 0;
    }
    for (int64_t i = 0; i < rows_ * padded_; i += kLanes) store(outputs_ + i, zero());
    const int64_t keys = s_.past + first_ + rows_ / group_, blocks = (keys + kPageTokens - 1) / kPageTokens;
    for (int64_t b = 0; b < blocks; ++b) {
      attend(Block(a_, s_, b, kv_head_, keys), Block(a_, s_, smaller(b + 1, blocks - 1), kv_head_, keys));
    }
    for (int64_t r = 0; r < rows_; ++r) {
      float* y = a_.y.row<float>(s_.begin + first_ + r / group_) + (kv_head_ * group_ + r % group_) * a_.head_dim;
      const F32 total = broadcast(total_[r]);
      for (int64_t d = 0; d < a_.head_dim; d += kLanes) {
        store(y + d, load(outputs_ + r * padded_ + d) / total, a_.head_dim - d);
      }
    }
  }

 private:
  void attend(const Block& block, const Block& next) {
    const int64_t first_key = block.index * kPageTokens, first = s_.past + first_;
    Upcoming upcoming(next, a_.head_dim);
    transpose(block.keys, 0, block.count, a_.head_dim, keys_);
    pack_values(block.values, 0, block.count, a_.head_dim, values_);
    // Rows before these see none of the block.
    const int64_t begin = larger(0, first_key - first) * group_;
    for (int64_t row = begin; row < rows_; row += kTileRows) {
      upcoming.fetch((rows_ - begin) / kTileRows + 1);
      const int64_t height = smaller(kTileRows, rows_ - row);
      int64_t seen[kTileRows];
      for (int64_t r = 0; r < height; ++r) seen[r] = smaller(block.count, first + (row + r) / group_ + 1 - first_key);
      score(queries_ + row * padded_, padded_, keys_, a_.head_dim, height, seen[height - 1], weights_);
      alignas(64) float most[kLanes] = {}, total[kLanes] = {}, before[kLanes], now[kLanes];
      for (int64_t r = 0; r < height; ++r) {
        const Summary summary = weigh(weights_ + r * kPageTokens, seen[r]);
        most[r] = summary.most;
        total[r] = summary.total;
      }
      const Merge m = merge(load(most_ + row, height), load(most));
      store(most_ + row, m.most, height);
      store(total_ + row, fma(load(total), m.block, load(total_ + row, height) * m.before), height);
      store(before, m.before);
      store(now, m.block);
      float* outputs = outputs_ + row * padded_;
      accumulate(
          weights_, {values_, padded_}, 0, seen, height, padded_, [](int64_t, int64_t) ELAPID_LAMBDA { return zero(); },
          [&](int64_t r, int64_t column, const F32& o) ELAPID_LAMBDA {
            float* output = outputs + r * padded_ + column;
            store(output, fma(o, broadcast(now[r]), load(output) * broadcast(before[r])));
          });
    }
  }

  const AttentionForward& a_;
  Sequence s_;
  int64_t group_, padded_, kv_head_, first_, rows_;
  float *keys_, *values_, *weights_;            // [head_dim, 64], [64, padded], [kTileRows, 64]
  float *queries_, *outputs_, *most_, *total_;  // [rows, padded], likewise; [rows]
};

// Block `block` for all heads of a sequence of few rows: little to compute, much to read. Heads lie side by side in a
// token's row, so kLanes tokens at a time are read through all heads, which is as many streams as a core follows; o is
// put aside between them.
void key_block(const AttentionForward& a, int64_t sequence, int64_t block, float* scratch) {
  const Sequence s(a, sequence);
  const int64_t group = a.in.heads / a.in.kv_heads, rows = s.length * group, padded = attention_padded(a.head_dim);
  const int64_t end = s.past + s.length, pass = attention_heads_a_pass(a.in.kv_heads, a.head_dim);
  const int64_t stride = a.partials.row_stride(), head_keys = a.head_dim * kPageTokens;
  float *keys = scratch, *weights = keys + pass * head_keys, *values = weights + pass * rows * kPageTokens;
  float* queries = values + kPageTokens * padded;
  // Rows before this one see none of the block.
  const int64_t first = larger(0, block * kPageTokens - s.past) * group;
  int64_t seen[kFewQueryRows];
  for (int64_t head = 0; head < a.in.kv_heads; head += pass) {
    const int64_t heads = smaller(pass, a.in.kv_heads - head), n = Block(a, s, block, head, end).count;
    for (int64_t r = first; r < rows; ++r) seen[r] = smaller(n, s.past + r / group + 1 - block * kPageTokens);
    for (int64_t j = 0; j < n; j += kLanes) {
      for (int64_t h = 0; h < heads; ++h) {
        transpose(Block(a, s, block, head + h, end).keys, j, smaller(j + kLanes, n), a.head_dim, keys + h * head_keys);
      }
    }
    float* partials = a.partials.row<float>(a.partial.ptr<int64_t>()[sequence] + (block * a.in.kv_heads + head) * rows);
    for (int64_t h = 0; h < heads; ++h) {
      load_queries(a, s, 0, head + h, rows, queries);
      for (int64_t row = first; row < rows; row += kTileRows) {
        const int64_t height = smaller(kTileRows, rows - row);
        float* tile = weights + (h * rows + row) * kPageTokens;
        score(queries + row * padded, padded, keys + h * head_keys, a.head_dim, height, seen[row + height - 1], tile);
        for (int64_t r = 0; r < height; ++r) {
          const Summary summary = weigh(tile + r * kPageTokens, seen[row + r]);
          partials[(h * rows + row + r) * stride] = summary.most;
          partials[(h * rows + row + r) * stride + 1] = summary.total;
        }
      }
    }
    for (int64_t j = 0; j < n; j += kLanes) {
      int64_t ends[kFewQueryRows];
      for (int64_t r = first; r < rows; ++r) ends[r] = smaller(seen[r], j + kLanes);
      for (int64_t h = 0; h < heads; ++h) {
        Rows from = Block(a, s, block, head + h, end).values;
        if (padded != a.head_dim) {
          pack_values(from, j, smaller(j + kLanes, n), a.head_dim, values);
          from = {values, padded};
        }
        for (int64_t row = first; row < rows; row += kTileRows) {
          float* o = partials + (h * rows + row) * stride + kLanes;
          accumulate(
              weights + (h * rows + row) * kPageTokens, from, j, ends + row, smaller(kTileRows, rows - row), padded,
              [&](int64_t r, int64_t column) ELAPID_LAMBDA { return j == 0 ? zero() : load(o + r * stride + column); },
              [&](int64_t r, int64_t column, const F32& sum) ELAPID_LAMBDA { store(o + r * stride + column, sum); });
        }
      }
    }
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
        QueryBlock(a, s, task, a.scratch.row<float>(worker)).run();
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
