#include "elapid/ops/embedding/embedding.h"

#include "elapid/ops/embedding/embedding_reference.h"
#include "tests/ops/harness.h"

namespace elapid::testing {
namespace {

struct Case {
  int64_t tokens, vocab, d_model;
  DType dtype = DType::f32;
  float scale = 1;
  Alignment alignment = Alignment::none;
};

Op<Case> op() {
  Op<Case> op;
  op.name = "embedding";
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (const int64_t tokens : {0, 1, 2, 15, 16, 17, 100}) {
      op.cases.push_back({tokens, 50, 33, dtype, 1});
      op.cases.push_back({tokens, 7, 16, dtype, 12.3f});
    }
    op.cases.push_back({40, 1, 1, dtype, 0.7f});
    op.cases.push_back({40, 300, 768, dtype, 0.7f});
  }
  op.describe = [](const Case& c) {
    return concat(c.tokens, " of ", c.vocab, " x ", c.d_model, " ", name_of(c.dtype), " scale ", c.scale);
  };
  op.make = [](Workbench& bench, const Case& c) {
    reference::EmbeddingInputs in;
    for (int64_t t = 0; t < c.tokens; ++t) {
      in.tokens.push_back(t < 2 ? t * (c.vocab - 1)
                                : static_cast<int64_t>(bench.draw() * static_cast<double>(c.vocab)));
    }
    const Tensor tokens = bench.integers(in.tokens, DType::i32);
    const Param table = bench.param(bench.tensor({c.vocab, c.d_model}, kMixed, c.dtype, c.alignment));
    in.table = reference::matrix_of(table.value);
    in.scale = static_cast<double>(c.scale);
    return Operation{
        [=, &bench](Context& ctx) { return std::vector{embedding(ctx, tokens, bench.at(ctx)(table), c.scale)}; },
        {reference::embedding(in)}};
  };
  return op;
}

TEST(Embedding, Forward) { check_forward(op()); }
// A device's tables lie where their elements may.
TEST(Embedding, OnCuda) {
  Op<Case> aligned = op();
  for (Case& c : aligned.cases) c.alignment = Alignment::element;
  check_on_cuda(aligned);
}

TEST(Embedding, IdOutsideTheTableIsAnError) {
  Workbench bench(1);
  Lab lab;
  Context ctx = lab.ctx();
  const Param table = bench.param(bench.tensor({5, 4}, kMixed));
  EXPECT_THROW(embedding(ctx, bench.integers({0, 5}, DType::i32), table, 1), Error);
  EXPECT_THROW(embedding(ctx, bench.integers({-1}, DType::i32), table, 1), Error);
  EXPECT_THROW(embedding(ctx, bench.integers({0}), table, 1), Error);
  EXPECT_NO_THROW(embedding(ctx, bench.integers({0, 4}, DType::i32), table, 1));
}

}  // namespace
}  // namespace elapid::testing
