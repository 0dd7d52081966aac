#include "elapid/ops/attention/attention.h"

#include "elapid/ops/attention/attention_reference.h"
#include "tests/ops/harness.h"

#include <algorithm>
#include <array>

namespace elapid::testing {
namespace {

struct Case {
  Ragged ragged;
  std::array<int64_t, 5> past{};  // of the first sequences that have a slot; the others have none
  int64_t heads = 4, kv_heads = 2, head_dim = 16;
  bool strided = false;
  float scale = 0.25f;
  Range range = kMixed;
  DType activations = DType::f32;
};

// q, k and v are columns of one projection, and a sequence's pages lie anywhere.
struct Operands {
  AttentionInputs in;
  KvCache cache;
  reference::Sequences sequences;
  std::vector<std::vector<int64_t>> pages;  // of each slot
};

int64_t pages_of(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

Tensor token_row(const Tensor& memory, const std::vector<int64_t>& pages, int64_t position) {
  const int64_t row = pages[static_cast<size_t>(position / kPageTokens)] * kPageTokens + position % kPageTokens;
  return memory.reshape({memory.rows(), memory.cols()}).slice(row, row + 1);
}

Operands operands(Workbench& bench, const Case& c) {
  Operands o;
  o.sequences = sequences_of(c.ragged);
  const int64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  const Tensor qkv = bench.matrix(o.sequences.offsets.back(), q + 2 * kv, c.range, c.strided, c.activations);
  o.in = {qkv.columns(0, q), qkv.columns(q, q + kv), qkv.columns(q + kv, q + 2 * kv), c.heads, c.kv_heads, c.scale};
  if (c.ragged.slots == Slots::none) return o;

  const int64_t slots = ragged_pool_rows(c.ragged);
  o.pages.resize(static_cast<size_t>(slots));
  o.sequences.past.assign(o.sequences.slots.size(), 0);
  std::vector<int64_t> lengths(static_cast<size_t>(slots));
  int64_t most = 1, total = 0;
  size_t next = 0;
  for (int64_t s = 0; s < o.sequences.count(); ++s) {
    const int64_t slot = o.sequences.slot(s);
    if (slot < 0) continue;
    const int64_t past = next < c.past.size() ? c.past[next++] : 0;
    o.sequences.past[static_cast<size_t>(s)] = past;
    lengths[static_cast<size_t>(slot)] = past + o.sequences.end(s) - o.sequences.begin(s);
    most = std::max(most, pages_of(lengths[static_cast<size_t>(slot)]));
    total += pages_of(lengths[static_cast<size_t>(slot)]);
  }
  // Neighbouring pages of a sequence are apart, every other one is nobody's, and what was not written yet is NaN.
  const int64_t count = 2 * total + 1;
  for (Tensor* memory : {&o.cache.keys, &o.cache.values}) {
    *memory = bench.output(count * kPageTokens, kv, false).reshape({count, kPageTokens, kv});
  }
  std::vector<int64_t> table(static_cast<size_t>(slots * (most + 2)), -7);
  int64_t page = count - 2;
  for (size_t slot = 0; slot < lengths.size(); ++slot) {
    for (int64_t p = 0; p < pages_of(lengths[slot]); ++p, page -= 2) {
      o.pages[slot].push_back(page);
      table[slot * static_cast<size_t>(most + 2) + static_cast<size_t>(p)] = page;
    }
  }
  o.cache.page_table = bench.integers(table, DType::i32).reshape({slots, most + 2});
  for (int64_t s = 0; s < o.sequences.count(); ++s) {
    if (o.sequences.slot(s) < 0) continue;
    const auto& pages = o.pages[static_cast<size_t>(o.sequences.slot(s))];
    const int64_t past = o.sequences.past_of(s), end = past + o.sequences.end(s) - o.sequences.begin(s);
    for (const Tensor& memory : {o.cache.keys, o.cache.values}) {
      for (int64_t t = 0; t < past; ++t) {
        const Tensor row = token_row(memory, pages, t);
        for (int64_t i = 0; i < kv; ++i) {
          // What calls in bf16 have left there is bf16.
          const auto value = static_cast<float>(bench.draw(c.range));
          row.ptr<float>()[i] = c.activations == DType::bf16 ? to_float(to_bf16(value)) : value;
        }
      }
      for (int64_t t = past; t < end; ++t) bench.writable(token_row(memory, pages, t));
    }
  }
  return o;
}

reference::AttentionExpected expected(const Operands& o, int64_t weights_of = -1) {
  return reference::attention({reference::matrix_of(o.in.q), reference::matrix_of(o.in.k), reference::matrix_of(o.in.v),
                               reference::matrix_of(o.cache.keys), reference::matrix_of(o.cache.values), o.pages,
                               o.in.heads, o.in.kv_heads, static_cast<double>(o.in.scale), o.in.q.dtype == DType::bf16},
                              o.sequences, weights_of);
}

std::vector<Case> cases() {
  std::vector<Case> cases;
  const struct {
    int64_t heads, kv_heads, head_dim;
  } shapes[] = {{4, 2, 16}, {1, 1, 1},  {3, 1, 5},  {8, 8, 4}, {6, 3, 20},
                {2, 1, 64}, {2, 2, 80}, {20, 1, 3}, {4, 4, 17}};
  const std::array<int64_t, 5> pasts[] = {{}, {1, 64, 0, 63}, {65, 1}, {130, 127, 64}, {63, 200, 3, 128, 5}};
  size_t i = 0;
  for (const Ragged& ragged : ragged_batches()) {
    const auto& shape = shapes[i % std::size(shapes)];
    cases.push_back({ragged, pasts[i % std::size(pasts)], shape.heads, shape.kv_heads, shape.head_dim, i % 2 == 0,
                     i % 3 == 0 ? 1.0f : 0.125f, i % 7 < 4 ? kMixed : kPositive});
    ++i;
  }
  // Several query blocks; blocks of keys whose largest scores rise and fall by much; decoding far on.
  cases.push_back({{{300, 1, 140}, Slots::permuted}, {100, 1000, 64}, 4, 1, 24, true, 0.2f, {-3, 3}});
  cases.push_back({{{1, 1, 3}, Slots::mixed}, {1500, 700}, 8, 2, 32, false, 1, {-2, 2}});
  cases.push_back({{{2}, Slots::permuted}, {3000}, 6, 1, 8, true, 0.1f, {-1, 1}});
  return cases;
}

std::string described(const Case& c) {
  std::string text = concat(describe(c.ragged), ", heads ", c.heads, " of ", c.head_dim, " kv ", c.kv_heads, " past");
  for (const int64_t past : c.past) text += concat(" ", past);
  return text + (c.strided ? " strided" : "");
}

AttentionInputs located(const Located& at, AttentionInputs in) {
  for (Tensor* t : {&in.q, &in.k, &in.v}) *t = at(*t);
  return in;
}
KvCache located(const Located& at, KvCache cache) {  // the page table stays where the front reads it
  for (Tensor* t : {&cache.keys, &cache.values}) *t = at(*t);
  return cache;
}

Op<Case> op() {
  Op<Case> op;
  op.name = "attention";
  op.cases = cases();
  op.describe = described;
  op.make = [](Workbench& bench, const Case& c) {
    const Operands o = operands(bench, c);
    const Batch batch = bench.batch(o.sequences);
    reference::AttentionExpected want = expected(o);
    Operation operation;
    operation.run = [=, &bench](Context& ctx) {
      const Located at = bench.at(ctx);
      const KvCache cache = located(at, o.cache);
      std::vector outputs{attention(ctx, located(at, o.in), batch, cache)};
      if (cache.keys) outputs.insert(outputs.end(), {cache.keys, cache.values});
      return outputs;
    };
    if (c.activations == DType::bf16) want.y = written_in_bf16(std::move(want.y));
    operation.expected.push_back(std::move(want.y));
    if (o.cache.keys) {
      operation.expected.push_back(std::move(want.keys));
      operation.expected.push_back(std::move(want.values));
    }
    return operation;
  };
  return op;
}

// Heads as wide as models have them, over several blocks of keys.
Op<Case> larger() {
  Op<Case> larger = op();
  larger.name += " larger";
  larger.smallest_share = 0.01;  // long sums of products, whose roundings mostly cancel
  larger.cases = {{{{150, 1, 3}, Slots::permuted}, {100, 300, 64}, 4, 2, 128, false, 0.1f},
                  {{{70, 1}, Slots::none}, {}, 8, 1, 64, false, 0.125f},
                  {{{90, 2}, Slots::mixed}, {10, 90}, 2, 2, 96, true, 0.1f},
                  {{{80, 1}, Slots::permuted}, {65, 200}, 2, 1, 256, false, 0.06f},
                  {{{33, 1, 1, 1, 1}, Slots::permuted}, {0, 640, 63, 64, 65}, 16, 2, 112, false, 0.1f}};
  return larger;
}

Op<Case> in_bf16(Op<Case> op) {
  op.name += " of bf16";
  for (Case& c : op.cases) c.activations = DType::bf16;
  return op;
}

TEST(Attention, Forward) { check_forward(op()); }
TEST(Attention, OnCuda) { check_on_cuda(op()); }
TEST(Attention, LargerOnCuda) { check_on_cuda(larger()); }
TEST(Attention, Bf16OnCuda) { check_on_cuda(in_bf16(op())); }
TEST(Attention, Bf16LargerOnCuda) { check_on_cuda(in_bf16(larger())); }

// In pieces, the same bits, as on the CPU.
TEST(Attention, AnySplitIsTheSameOnCuda) {
  std::string why;
  if (!has_cuda(why)) GTEST_SKIP() << why;
  const Case c{{{300}, Slots::permuted}, {40}, 6, 2, 20};
  Workbench bench(2);
  const Operands o = operands(bench, c);
  const Batch whole = bench.batch(o.sequences);
  const int64_t slot = o.sequences.slot(0);
  std::map<std::pair<int64_t, int64_t>, Batch> pieces;  // by past and length
  const int64_t sizes[] = {1, 2, 7, 64, 299};
  for (const int64_t size : sizes) {
    for (int64_t begin = 0; begin < 300; begin += size) {
      const int64_t length = std::min(size, 300 - begin);
      pieces[{40 + begin, length}] = bench.batch({{0, length}, {slot}, {40 + begin}});
    }
  }
  bench.snapshot();
  Lab lab(1, {DeviceType::cuda, 0});
  Context ctx = lab.ctx();
  const auto run = [&](int64_t begin, int64_t length, const Batch& batch) {
    const Located at = bench.at(ctx);
    AttentionInputs part = located(at, o.in);
    for (Tensor* t : {&part.q, &part.k, &part.v}) *t = t->slice(begin, begin + length);
    return bits_of(copy_to_host(ctx, attention(ctx, part, batch, located(at, o.cache))).tensor);
  };
  bench.copy_to_device(ctx, true);
  const Bits y = run(0, 300, whole), keys = bits_of(copy_to_host(ctx, bench.device_copy(o.cache.keys)).tensor);
  for (const int64_t size : sizes) {
    bench.restore();
    bench.copy_to_device(ctx, true);
    Bits pieced;
    for (int64_t begin = 0; begin < 300; begin += size) {
      const int64_t length = std::min(size, 300 - begin);
      const Bits bits = run(begin, length, pieces.at({40 + begin, length}));
      pieced.insert(pieced.end(), bits.begin(), bits.end());
    }
    EXPECT_TRUE(pieced == y) << "pieces of " << size;
    EXPECT_TRUE(bits_of(copy_to_host(ctx, bench.device_copy(o.cache.keys)).tensor) == keys) << "pieces of " << size;
  }
}

Op<Case> weights_op() {
  Op<Case> weights = op();
  weights.name = "attention_weights";
  std::erase_if(weights.cases, [](const Case& c) { return c.ragged.lengths.empty(); });
  weights.make = [](Workbench& bench, const Case& c) {
    const Operands o = operands(bench, c);
    const Batch batch = bench.batch(o.sequences);
    const auto longest = std::max_element(c.ragged.lengths.begin(), c.ragged.lengths.end());
    const int64_t s = longest - c.ragged.lengths.begin();
    const auto run = [=, &bench](Context& ctx) {
      const Located at = bench.at(ctx);
      return std::vector{attention_weights(ctx, located(at, o.in), batch, located(at, o.cache), s)};
    };
    return Operation{run, {expected(o, s).weights}};
  };
  return weights;
}

TEST(Attention, Weights) { check_forward(weights_op()); }
TEST(Attention, WeightsOnCuda) { check_on_cuda(weights_op()); }

TEST(Attention, SequenceIsTheSameAloneAndNanStaysWhereItIsSeen) {
  const Case c{{{5, 1, 70, 1, 0, 2, 133}, Slots::mixed}, {3, 200, 64, 0, 127}, 6, 2, 20, true};
  constexpr int64_t kBad = 2, kAt = 30;
  Workbench bench(1);
  const Operands o = operands(bench, c);
  o.in.v.row<float>(o.sequences.begin(kBad) + kAt)[0] = __builtin_nanf("");
  const Batch batch = bench.batch(o.sequences);
  std::vector<Batch> ones;
  for (int64_t s = 0; s < o.sequences.count(); ++s) ones.push_back(bench.batch(alone(o.sequences, s)));
  bench.snapshot();
  for_each_isa([&](Isa) {
    Lab lab(3);
    Context ctx = lab.ctx();
    bench.restore();
    const Tensor y = attention(ctx, o.in, batch, o.cache);
    const Bits keys = bits_of(o.cache.keys), values = bits_of(o.cache.values);
    bench.restore();
    for (int64_t s = 0; s < o.sequences.count(); ++s) {
      const int64_t begin = o.sequences.begin(s), end = o.sequences.end(s);
      AttentionInputs part = o.in;
      for (Tensor* t : {&part.q, &part.k, &part.v}) *t = t->slice(begin, end);
      EXPECT_EQ(bits_of(attention(ctx, part, ones[static_cast<size_t>(s)], o.cache)), bits_of(y.slice(begin, end)))
          << "sequence " << s;
      for (int64_t t = begin; t < end; ++t) {
        for (int64_t i = 0; i < y.cols(); ++i) {
          const bool reached = s == kBad && t >= begin + kAt && i / 20 < 3 && i % 20 == 0;
          ASSERT_EQ(std::isnan(y.row<float>(t)[i]), reached) << t - begin << " " << i;
        }
      }
    }
    EXPECT_EQ(bits_of(o.cache.keys), keys);
    EXPECT_EQ(bits_of(o.cache.values), values);
  });
}

// In pieces, a sequence gives the same bits as in one call: even token by token, where keys are spread over threads.
TEST(Attention, AnySplitIsTheSame) {
  const Case c{{{300}, Slots::permuted}, {40}, 6, 2, 20};
  Workbench bench(2);
  const Operands o = operands(bench, c);
  const Batch whole = bench.batch(o.sequences);
  const int64_t slot = o.sequences.slot(0);
  std::map<std::pair<int64_t, int64_t>, Batch> pieces;  // by past and length
  const int64_t sizes[] = {1, 2, 3, 7, 64, 65, 299};
  for (const int64_t size : sizes) {
    for (int64_t begin = 0; begin < 300; begin += size) {
      const int64_t length = std::min(size, 300 - begin);
      pieces[{40 + begin, length}] = bench.batch({{0, length}, {slot}, {40 + begin}});
    }
  }
  bench.snapshot();
  for_each_isa([&](Isa) {
    Lab lab(2);
    Context ctx = lab.ctx();
    bench.restore();
    const Bits y = bits_of(attention(ctx, o.in, whole, o.cache)), keys = bits_of(o.cache.keys);
    for (const int64_t size : sizes) {
      bench.restore();
      Bits pieced;
      for (int64_t begin = 0; begin < 300; begin += size) {
        const int64_t length = std::min(size, 300 - begin);
        AttentionInputs part = o.in;
        for (Tensor* t : {&part.q, &part.k, &part.v}) *t = t->slice(begin, begin + length);
        const Bits bits = bits_of(attention(ctx, part, pieces.at({40 + begin, length}), o.cache));
        pieced.insert(pieced.end(), bits.begin(), bits.end());
      }
      EXPECT_TRUE(pieced == y) << "pieces of " << size;
      EXPECT_TRUE(bits_of(o.cache.keys) == keys) << "pieces of " << size;
    }
  });
}

// Without a slot, keys and values are read from the call itself: the same bits as through pages.
TEST(Attention, PagesDoNotMatter) {
  const Case c{{{200, 1, 9}, Slots::permuted}, {}, 4, 2, 20, true};
  Workbench bench(3);
  const Operands o = operands(bench, c);
  const Batch paged = bench.batch(o.sequences), plain = bench.batch({o.sequences.offsets, {-1, -1, -1}});
  Lab lab(2);
  Context ctx = lab.ctx();
  EXPECT_EQ(bits_of(attention(ctx, o.in, paged, o.cache)), bits_of(attention(ctx, o.in, plain, {})));
}

TEST(Attention, InfiniteAndHugeScoresAreWhatTheyAre) {
  Workbench bench(4);
  // One row against three keys of one dimension.
  const auto run = [&](const std::vector<float>& keys) {
    AttentionInputs in{
        bench.floats(std::vector<float>(keys.size(), 1)), bench.floats(keys), bench.floats({1, 2, 4}), 1, 1, 1};
    for (Tensor* t : {&in.q, &in.k, &in.v}) *t = t->reshape({3, 1});
    const Batch batch = bench.batch({{0, 3}, {-1}});
    Lab lab;
    Context ctx = lab.ctx();
    return attention(ctx, in, batch, {}).row<float>(2)[0];
  };
  const float infinity = __builtin_inff(), nan = __builtin_nanf("");
  EXPECT_EQ(run({0, 0, -infinity}), 1.5f);
  EXPECT_EQ(run({-3e38f, 3e38f, -3e38f}), 2);
  EXPECT_EQ(run({1000, -1000, -1000}), 1);
  EXPECT_TRUE(std::isnan(run({0, infinity, 0})));
  EXPECT_TRUE(std::isnan(run({nan, 0, 0})));
}

TEST(Attention, OperandsThatDoNotFitAreErrors) {
  Workbench bench(5);
  const Case c{{{3, 70}, Slots::permuted}, {62, 1}, 4, 2, 8};
  const Operands o = operands(bench, c);
  Lab lab;
  Context ctx = lab.ctx();
  const reference::Sequences good = o.sequences;
  const auto run = [&](const AttentionInputs& in, const KvCache& cache, const reference::Sequences& sequences) {
    attention(ctx, in, bench.batch(sequences), cache);
  };
  EXPECT_NO_THROW(run(o.in, o.cache, good));
  const auto with = [&](auto change) {
    AttentionInputs in = o.in;
    KvCache cache = o.cache;
    reference::Sequences sequences = good;
    change(in, cache, sequences);
    EXPECT_THROW(run(in, cache, sequences), Error);
  };
  with([](auto& in, auto&, auto&) { in.heads = 3; });
  with([](auto& in, auto&, auto&) { in.kv_heads = 3; });
  with([](auto& in, auto&, auto&) { in.kv_heads = 0; });
  with([](auto& in, auto&, auto&) { in.v = in.v.columns(0, 8); });
  with([](auto& in, auto&, auto&) { in.k = in.k.slice(0, 72); });
  with([](auto&, auto& cache, auto&) { cache = {}; });
  with([](auto&, auto& cache, auto&) { cache.values = {}; });
  with([](auto&, auto& cache, auto&) { cache.values = cache.values.slice(0, 1); });
  with([](auto&, auto& cache, auto&) { cache.page_table = cache.page_table.columns(0, 1); });
  with([](auto&, auto&, auto& sequences) { sequences.past = {62}; });
  with([](auto&, auto&, auto& sequences) { sequences.past = {}; });
  with([](auto&, auto&, auto& sequences) { sequences.past = {62, -1}; });
  with([](auto&, auto&, auto& sequences) { sequences.past = {62, 200}; });
  with([](auto&, auto&, auto& sequences) { sequences.slots[1] = -1; });
  with([](auto&, auto&, auto& sequences) { sequences.slots[1] = 5; });
  o.cache.page_table.row<int32_t>(good.slot(0))[1] = static_cast<int32_t>(o.cache.keys.shape[0]);
  EXPECT_THROW(run(o.in, o.cache, good), Error) << "no such page";
  EXPECT_THROW(attention_weights(ctx, o.in, bench.batch(good), o.cache, 2), Error);
}

}  // namespace
}  // namespace elapid::testing
