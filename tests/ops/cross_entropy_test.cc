#include "elapid/ops/cross_entropy/cross_entropy.h"

#include "elapid/ops/cross_entropy/cross_entropy_reference.h"
#include "tests/ops/harness.h"

namespace elapid::testing {
namespace {

struct Case {
  int64_t rows, vocab;
  Range range = {-5, 5};
  bool strided = false;
};

Op<Case> op() {
  Op<Case> op;
  op.name = "cross_entropy";
  int64_t i = 0;
  for (const int64_t rows : {0, 1, 3, 4, 5, 9}) {
    for (const int64_t vocab : {1, 2, 15, 16, 17, 31, 33, 50, 1000}) {
      const Range ranges[] = {{-5, 5}, {-80, 80}, {0, 0.01}, {30, 31}};
      op.cases.push_back({rows, vocab, ranges[i % 4], i % 2 == 0});
      ++i;
    }
  }
  op.cases.push_back({2, 50280});
  op.cases.push_back({4, 100, {-1e4, 1e4}});
  op.cases.push_back({4, 100, {-1e30, 1e30}});
  op.cases.push_back({4, 100, {0, 0}});
  op.describe = [](const Case& c) {
    return concat(c.rows, " x ", c.vocab, " logits in ", c.range.low, " to ", c.range.high,
                  c.strided ? " strided" : "");
  };
  op.make = [](Workbench& bench, const Case& c) {
    const Tensor logits = bench.matrix(c.rows, c.vocab, c.range, c.strided);
    reference::CrossEntropyInputs in{reference::matrix_of(logits), {}};
    for (int64_t r = 0; r < c.rows; ++r) {
      const int64_t labels[] = {0, c.vocab - 1, kIgnoreLabel,
                                static_cast<int64_t>(bench.draw() * static_cast<double>(c.vocab))};
      in.labels.push_back(labels[r % 4]);
    }
    const Tensor labels = bench.integers(in.labels);
    return Operation{[=, &bench](Context& ctx) {
                       return std::vector{cross_entropy(ctx, bench.at(ctx)(logits), labels).reshape({c.rows, 1})};
                     },
                     {reference::cross_entropy(in)}};
  };
  return op;
}

TEST(CrossEntropy, Forward) { check_forward(op()); }
TEST(CrossEntropy, OnCuda) { check_on_cuda(op()); }

TEST(CrossEntropy, NanStaysInItsRowAndIsNotLost) {
  Workbench bench(1);
  constexpr int64_t kRows = 6, kBad = 2;
  for (const int64_t vocab : {40, 48}) {
    for (const int64_t at : {int64_t{0}, int64_t{7}, int64_t{20}, vocab - 1}) {
      const Tensor logits = bench.matrix(kRows, vocab, {-5, 5}, false);
      const Tensor labels = bench.integers({1, 2, 3, 4, 5, 6});
      for_each_isa([&](Isa) {
        Lab lab(2);
        Context ctx = lab.ctx();
        const float kept = logits.row<float>(kBad)[at];
        const Bits clean = bits_of(cross_entropy(ctx, logits, labels));
        logits.row<float>(kBad)[at] = __builtin_nanf("");
        const Tensor nll = cross_entropy(ctx, logits, labels);
        logits.row<float>(kBad)[at] = kept;
        const Bits bits = bits_of(nll);
        for (size_t r = 0; r < kRows; ++r) {
          EXPECT_TRUE(r == kBad || bits[r] == clean[r]) << "row " << r;
        }
        EXPECT_TRUE(std::isnan(nll.ptr<float>()[kBad])) << "NaN at " << at << " of " << vocab << " was lost";
      });
    }
  }
}

TEST(CrossEntropy, InfiniteLogits) {
  Workbench bench(2);
  constexpr float kInfinity = __builtin_inff();
  // A masked logit has no probability; a label on it an infinite loss.
  const Tensor logits = bench.floats({-kInfinity, 1, -kInfinity, 1, -kInfinity, 1}).reshape({2, 3});
  const Tensor labels = bench.integers({1, 1});
  for_each_isa([&](Isa) {
    Lab lab;
    Context ctx = lab.ctx();
    const Tensor nll = cross_entropy(ctx, logits, labels);
    EXPECT_EQ(nll.ptr<float>()[0], 0.0f);
    EXPECT_EQ(nll.ptr<float>()[1], kInfinity);
  });
}

TEST(CrossEntropy, LabelOutsideTheVocabularyIsAnError) {
  Workbench bench(3);
  Lab lab;
  Context ctx = lab.ctx();
  const Tensor logits = bench.matrix(2, 10, kMixed, false);
  EXPECT_THROW(cross_entropy(ctx, logits, bench.integers({0, 10})), Error);
  EXPECT_THROW(cross_entropy(ctx, logits, bench.integers({-1, 0})), Error);
  EXPECT_THROW(cross_entropy(ctx, logits, bench.integers({0})), Error);
  EXPECT_NO_THROW(cross_entropy(ctx, logits, bench.integers({kIgnoreLabel, 9})));
}

}  // namespace
}  // namespace elapid::testing
