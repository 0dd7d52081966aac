// Tensors of more than 2^31 elements: an index kept in 32 bits anywhere shows in the last rows. What is not written in
// these buffers costs no memory; each test needs some 9 GB all the same, for what operators return.

#include "elapid/core/buffer.h"
#include "elapid/ops/causal_conv1d/causal_conv1d.h"
#include "elapid/ops/embedding/embedding.h"
#include "elapid/ops/matmul/matmul.h"
#include "elapid/ops/rms_norm/rms_norm.h"
#include "elapid/ops/selective_scan/selective_scan.h"
#include "elapid/ops/ssd_scan/ssd_scan.h"

#include <cstring>
#include <deque>
#include <gtest/gtest.h>

namespace elapid::testing {
namespace {

constexpr int64_t kPow31 = int64_t{1} << 31;
// Tokens of one sequence: the last ones, whole chunks and a part of one, hold values, everything before them zeros.
constexpr int64_t kChannels = 2048, kZeros = int64_t{1} << 20, kLast = 70, kTokens = kZeros + kLast;
static_assert(kTokens * kChannels > kPow31 && kZeros % kSsdChunk == 0);

class Large : public ::testing::Test {
 protected:
  Tensor zeros(Shape shape, DType dtype = DType::f32) {
    return {memory_.emplace_back(shape.size() * size_of(dtype)).data(), dtype, shape};
  }
  // Zero but for its last rows.
  Tensor tail(int64_t rows, int64_t columns) {
    const Tensor t = zeros({rows, columns});
    for (int64_t r = rows - kLast; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) t.row<float>(r)[c] = static_cast<float>((r * 31 + c * 17) % 101 - 50) / 50;
    }
    return t;
  }
  Tensor last_rows(const Tensor& t) { return t.slice(t.rows() - kLast, t.rows()); }
  Tensor integers(const std::vector<int64_t>& values) {
    const Tensor t = zeros({static_cast<int64_t>(values.size())}, DType::i64);
    std::copy(values.begin(), values.end(), t.ptr<int64_t>());
    return t;
  }
  Batch one_sequence(int64_t tokens) {
    return {.tokens = zeros({tokens}, DType::i32), .offsets = integers({0, tokens}), .slots = integers({kNoSlot})};
  }
  // The last rows of a sequence of zeros and those alone: to a causal operator on zeros the same.
  void expect_same_tail(const Tensor& whole, const Tensor& alone) {
    const Tensor end = last_rows(whole);
    ASSERT_EQ(alone.size(), end.size());
    EXPECT_EQ(std::memcmp(end.data, alone.data, static_cast<size_t>(end.bytes())), 0);
    bool any = false;
    for (int64_t i = 0; i < end.size(); ++i) any |= end.ptr<float>()[i] != 0;
    EXPECT_TRUE(any);
  }

  ThreadPool threads_;
  Arena arena_{int64_t{64} << 30};
  Context ctx_{{}, threads_, arena_};
  std::deque<Buffer> memory_;
};

TEST_F(Large, EmbeddingTable) {
  const int64_t vocab = (int64_t{1} << 20) + 3, width = 2049;
  const Tensor table = zeros({vocab, width}, DType::bf16);
  ASSERT_GT(table.size(), kPow31);
  auto* last = table.ptr<BFloat16>() + (vocab - 1) * width;
  for (int64_t c = 0; c < width; ++c) last[c] = to_bf16(static_cast<float>(c));
  const Tensor ids = zeros({2}, DType::i32);
  ids.ptr<int32_t>()[1] = static_cast<int32_t>(vocab - 1);
  const Tensor x = embedding(ctx_, ids, {"table", table, Packing::rows}, 1);
  for (int64_t c = 0; c < width; ++c) {
    ASSERT_EQ(x.row<float>(0)[c], 0);
    ASSERT_EQ(x.row<float>(1)[c], to_float(last[c]));
  }
}

TEST_F(Large, ProductOfManyRows) {
  const int64_t rows = (int64_t{1} << 21) + 3, in = 8, out = 1025;
  const Tensor x = zeros({rows, in}), w = zeros({out, in});
  for (int64_t i = 0; i < x.size(); ++i) x.ptr<float>()[i] = static_cast<float>(i % 7 - 3);
  for (int64_t i = 0; i < w.size(); ++i) w.ptr<float>()[i] = static_cast<float>(i % 5 - 2);
  for (const Arithmetic arithmetic : {Arithmetic::f32, Arithmetic::bf16}) {  // small whole numbers are exact in both
    const Arena::Scope scope(arena_);
    const DType dtype = arithmetic == Arithmetic::bf16 ? DType::bf16 : DType::f32;
    const Tensor packed = pack_weight(threads_, {&w, 1}, dtype, zeros({packed_bytes(w.shape, dtype)}, DType::u8).data);
    const Tensor y = matmul(ctx_, x, {"w", packed, Packing::tiles, arithmetic});
    ASSERT_GT(y.size(), kPow31);
    for (const int64_t r : {int64_t{0}, rows / 2, rows - 2, rows - 1}) {
      for (int64_t o = 0; o < out; ++o) {
        float want = 0;
        for (int64_t k = 0; k < in; ++k) want += x.row<float>(r)[k] * w.row<float>(o)[k];
        ASSERT_EQ(y.row<float>(r)[o], want) << "row " << r << ", output " << o;
      }
    }
  }
}

TEST_F(Large, CausalConvolution) {
  const Tensor x = tail(kTokens, kChannels);
  CausalConv1d conv{.weight = {"w", tail(kLast + 4, kChannels).slice(0, 4), Packing::rows}, .bias = {}, .silu = true};
  for (int64_t i = 0; i < 4 * kChannels; ++i) conv.weight.value.ptr<float>()[i] = static_cast<float>(i % 9 - 4) / 8;
  const Tensor whole = causal_conv1d(ctx_, x, conv, one_sequence(kTokens), {});
  expect_same_tail(whole, causal_conv1d(ctx_, last_rows(x), conv, one_sequence(kLast), {}));
}

TEST_F(Large, SsdScan) {
  constexpr int64_t kHeads = 32, kState = 16;
  const Tensor x = tail(kTokens, kChannels), dt = tail(kTokens, kHeads), B = tail(kTokens, kState),
               C = tail(kTokens, kState), A = zeros({kHeads});
  for (int64_t h = 0; h < kHeads; ++h) A.ptr<float>()[h] = -0.1f * static_cast<float>(h + 1);
  SsdScan scan{.x = x, .dt = dt, .B = B, .C = C, .A = A};
  const Tensor whole = ssd_scan(ctx_, scan, one_sequence(kTokens), {});
  for (Tensor* t : {&scan.x, &scan.dt, &scan.B, &scan.C}) *t = last_rows(*t);
  expect_same_tail(whole, ssd_scan(ctx_, scan, one_sequence(kLast), {}));
}

TEST_F(Large, SelectiveScan) {
  constexpr int64_t kState = 4;
  const Tensor x = tail(kTokens, kChannels), dt = tail(kTokens, kChannels), B = tail(kTokens, kState),
               C = tail(kTokens, kState), A = zeros({kChannels, kState});
  for (int64_t i = 0; i < A.size(); ++i) A.ptr<float>()[i] = -0.01f * static_cast<float>(i % 97 + 1);
  SelectiveScan scan{.x = x, .dt = dt, .B = B, .C = C, .A = A};
  const Tensor whole = selective_scan(ctx_, scan, one_sequence(kTokens), {});
  for (Tensor* t : {&scan.x, &scan.dt, &scan.B, &scan.C}) *t = last_rows(*t);
  expect_same_tail(whole, selective_scan(ctx_, scan, one_sequence(kLast), {}));
}

}  // namespace
}  // namespace elapid::testing
