#include "elapid/ops/matmul/quantized.h"

#include "elapid/ops/matmul/grouped_matmul.h"
#include "elapid/ops/matmul/matmul_reference.h"
#include "tests/ops/packed.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>

namespace elapid::testing {
namespace {

struct Case {
  int64_t rows, in, out;
  Packing packing;
  Range range = kMixed;
  bool strided = false, bias = false, add = false;
  float alpha = 1;
  bool amx = false;  // at AMX level, where weights or inputs are rounded further; else everywhere but there

  // A group's inputs become 16-bit integers, for few rows.
  [[nodiscard]] bool integers() const { return amx && rows <= 16; }
  // Weights are rounded to bf16, for more of them.
  [[nodiscard]] bool tiles() const { return amx && !integers(); }
};

Param quantized(Workbench& bench, const Tensor& rows, Packing packing) {
  const Tensor memory = bench.output(1, quantized_bytes(rows.shape, packing) / 4, false);
  return {"weight", pack_quantized(threads(1), {&rows, 1}, packing, memory.data), packing, Arithmetic::bf16};
}

// The weights that the codes stand for.
reference::Matrix weights_of(const Param& weight) {
  reference::Matrix m(weight.value.rows(), weight.value.cols());
  for (int64_t o = 0; o < m.rows; ++o) {
    for (int64_t k = 0; k < m.cols; ++k) m(o, k) = double{quantized_weight(weight, o, k)};
  }
  return m;
}

// Adds what rounding to 16-bit integers may do: half a step of a group's largest input for each of its inputs and, in
// int4, of the largest level for each weight; there the product of two low bytes (below 255 · 128 of 32512²) is
// missing. These are independent: see reference::roundings().
void add_integer_error(const reference::MatmulInputs& in, const Param& weight, reference::Expected& y) {
  constexpr double kStep = 0.5 / 32512, kMissing = 255.0 * 128 / (32512.0 * 32512);
  for (int64_t r = 0; r < in.x.rows; ++r) {
    for (int64_t o = 0; o < in.weight.rows; ++o) {
      double sum = 0, squares = 0;
      for (int64_t g = 0; g < in.x.cols; g += kQuantGroup) {
        const int64_t end = std::min(in.x.cols, g + kQuantGroup);
        double most = 0, scale = 0;
        for (int64_t k = g; k < end; ++k) {
          most = std::max(most, std::abs(in.x(r, k)));
          scale = std::max(scale, std::abs(in.weight(o, k)));  // some weight of a group of int4 has the largest code
        }
        for (int64_t k = g; k < end; ++k) {
          double error = kStep * most * std::abs(in.weight(o, k));
          if (weight.packing == Packing::int4) error += scale * (kStep * std::abs(in.x(r, k)) + kMissing * most);
          sum += error;
          squares += error * error;
        }
      }
      y.tolerance(r, o) += std::abs(in.alpha) * std::min(sum, 4 * std::sqrt(squares));
    }
  }
}

Operation make(Workbench& bench, const Case& c) {
  const Tensor x = bench.matrix(c.rows, c.in, c.range, c.strided);
  const Param weight = quantized(bench, bench.tensor({c.out, c.in}, c.range, DType::bf16, Alignment::none), c.packing);
  Epilogue epilogue;
  epilogue.alpha = c.alpha;
  if (c.bias) epilogue.bias = bench.tensor({c.out}, kMixed);
  if (c.add) epilogue.add = bench.matrix(c.rows, c.out, kMixed, c.strided);
  const reference::Matrix weights = weights_of(weight);
  const reference::MatmulInputs in{rounded_to_bf16(reference::matrix_of(x)),
                                   c.tiles() ? rounded_to_bf16(weights) : weights, reference::matrix_of(epilogue.bias),
                                   reference::matrix_of(epilogue.add), static_cast<double>(c.alpha)};
  Operation operation{[=](Context& ctx) { return std::vector{matmul(ctx, x, weight, epilogue)}; },
                      {reference::matmul(in)}};
  if (c.integers()) add_integer_error(in, weight, operation.expected.front());
  operation.tiled = true;
  operation.runs_at = [amx = c.amx](Isa isa) { return amx == (isa == Isa::amx); };
  return operation;
}

std::string describe(const Case& c) {
  return concat(c.rows, " x ", c.in, " -> ", c.out, c.packing == Packing::int8 ? " int8" : " int4",
                c.range.low < 0 ? " mixed" : " positive", c.strided ? " strided" : "", c.bias ? " bias" : "",
                c.add ? " add" : "", " alpha ", c.alpha,
                c.integers() ? " in integers"
                : c.tiles()  ? " in tiles"
                             : "");
}

enum class Form { floats, tiles, integers };

Op<Case> op(Form form) {
  const char* names[] = {"quantized_matmul", "quantized_matmul in tiles", "quantized_matmul in integers"};
  Op<Case> op{names[static_cast<int>(form)], {}, describe, make};
  const auto add = [&](const Case& c) {
    if (c.amx == (form != Form::floats) && c.integers() == (form == Form::integers)) op.cases.push_back(c);
  };
  const bool amx = form != Form::floats;
  const int64_t depths[] = {64, 257, 33, 300, 1, 128, 7}, widths[] = {48, 130, 33, 16, 257, 1, 15};
  size_t i = 0;
  for (const int64_t rows : {0, 1, 2, 3, 4, 5, 8, 9, 13, 16, 17, 32, 33, 70}) {
    for (const Packing packing : {Packing::int8, Packing::int4}) {
      for (int j = 0; j < 3; ++j, ++i) {
        add({rows, depths[i % 7], widths[i / 2 % 7], packing, i % 2 == 0 ? kMixed : kPositive, i % 3 == 0, i % 4 < 2,
             i % 5 < 2, i % 2 == 0 ? 1.0f : -0.75f, amx});
      }
    }
  }
  for (const int64_t rows : {1, 2, 6}) {
    for (const Packing packing : {Packing::int8, Packing::int4}) {
      add({rows, 1100, 300, packing, kPositive, false, false, false, 1, amx});
    }
  }
  return op;
}

TEST(Quantized, Forward) { check_forward(op(Form::floats)); }
TEST(Quantized, ForwardInTiles) {
  if (available_isas().back() != Isa::amx) GTEST_SKIP() << "this machine has no AMX";
  check_forward(op(Form::tiles));
}
TEST(Quantized, ForwardInIntegers) {
  if (available_isas().back() != Isa::amx) GTEST_SKIP() << "this machine has no AMX";
  check_forward(op(Form::integers));
}

TEST(Quantized, WhatIsNotFiniteShowsInItsRowAlone) {
  constexpr int64_t kRows = 5, kIn = 100, kOut = 33;
  for (const Packing packing : {Packing::int8, Packing::int4}) {
    Workbench bench(11);
    const Tensor x = bench.tensor({kRows, kIn}, kMixed);
    const Param weight = quantized(bench, bench.tensor({kOut, kIn}, kPositive, DType::bf16, Alignment::none), packing);
    x.row<float>(0)[70] = __builtin_nanf("");
    x.row<float>(2)[3] = -__builtin_inff();
    for (int64_t k = 0; k < kIn; ++k) x.row<float>(4)[k] *= 1e-33f;
    bench.snapshot();
    for_each_isa([&](Isa isa) {
      SCOPED_TRACE(name_of(isa));
      Lab lab;
      Context ctx = lab.ctx();
      const Tensor together = matmul(ctx, x, weight);
      for (int64_t r = 0; r < kRows; ++r) {
        const Tensor y = matmul(ctx, x.slice(r, r + 1), weight);
        EXPECT_EQ(bits_of(y), bits_of(together.slice(r, r + 1))) << "row " << r;
        for (int64_t o = 0; o < kOut; ++o) {
          const float value = y.row<float>(0)[o];
          switch (r) {
            case 0: EXPECT_TRUE(std::isnan(value)); break;
            case 2: EXPECT_EQ(value, -__builtin_inff()); break;
            case 4: EXPECT_TRUE(value != 0 && std::abs(value) < 1e-30f) << value; break;
            default: EXPECT_TRUE(std::isfinite(value));
          }
        }
      }
    });
  }
}

// A weight is off by at most half a step: of 1/127 of the group's largest, or between neighbouring levels. A scale
// below the largest magnitude may cut that one further.
TEST(Quantized, CodesAreTheNearest) {
  Workbench bench(7);
  const Tensor rows = bench.tensor({37, 200}, kMixed, DType::f32, Alignment::none);
  const reference::Matrix values = reference::matrix_of(rows);
  for (const Packing packing : {Packing::int8, Packing::int4}) {
    const Param weight = quantized(bench, rows, packing);
    double squares = 0, errors = 0;
    for (int64_t o = 0; o < 37; ++o) {
      for (int64_t k = 0; k < 200; ++k) {
        double largest = 0;
        for (int64_t j = k / kQuantGroup * kQuantGroup; j < std::min<int64_t>(200, (k / kQuantGroup + 1) * kQuantGroup);
             ++j) {
          largest = std::max(largest, std::abs(values(o, j)));
        }
        const double off = std::abs(double{quantized_weight(weight, o, k)} - values(o, k));
        ASSERT_LE(off, largest * (packing == Packing::int8 ? 0.5001 / 127 : 0.19)) << o << ' ' << k;
        squares += values(o, k) * values(o, k);
        errors += off * off;
      }
    }
    EXPECT_LE(std::sqrt(errors / squares), packing == Packing::int8 ? 0.005 : 0.11);
  }
}

// One group of one output, weight by weight; returns the scale.
float quantize_by_hand(Packing packing, const float (&w)[kQuantGroup], int (&codes)[kQuantGroup]) {
  float largest = 0;
  for (const float v : w) largest = std::max(largest, std::abs(v));
  if (packing == Packing::int8) {
    const float scale = largest / 127;
    for (int64_t k = 0; k < kQuantGroup; ++k) {
      codes[k] = scale > 0 ? static_cast<int>(std::clamp(std::nearbyint(w[k] / scale), -127.0f, 127.0f)) : 0;
    }
    return scale;
  }
  float best = 0;
  double least = std::numeric_limits<double>::infinity();
  for (const float share : {1.0f, 0.94f, 0.88f, 0.82f}) {
    const float scale = largest * share, inverse = scale > 0 ? 1 / scale : 0;
    int tried[kQuantGroup];
    double error = 0;
    for (int64_t k = 0; k < kQuantGroup; ++k) {
      tried[k] = 0;
      for (int i = 0; i < 15; ++i) tried[k] += w[k] * inverse > (kNormalFloat4[i] + kNormalFloat4[i + 1]) / 2 ? 1 : 0;
      const double off = double{w[k]} - double{scale} * double{kNormalFloat4[tried[k]]};
      error += off * off;
    }
    if (error < least) {
      least = error;
      best = scale;
      std::copy_n(tried, kQuantGroup, codes);
    }
  }
  return best;
}

// Every level writes the bits that this arithmetic gives, in the order that the header describes: scales, words.
TEST(Quantized, EveryLevelPacksTheSameBits) {
  const Range ranges[] = {kMixed, kPositive, {-1e-42, 1e-42}, {-1e38, 1e38}, {-1e-3, 2e-3}, {0, 0}};
  const Shape shapes[] = {{19, 150}, {16, 64}, {1, 1}, {70, 130}, {40, 129}, {33, 192}};
  for (size_t i = 0; i < std::size(shapes); ++i) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      if (dtype == DType::f16 && ranges[i].high > 6e4) continue;
      Workbench bench(20 + i);
      const Shape shape = shapes[i];
      const Tensor rows = bench.tensor(shape, ranges[i], dtype, Alignment::none);
      const reference::Matrix values = reference::matrix_of(rows);
      const int64_t groups = quant_groups(shape[1]), blocks = packed_blocks(shape[0]);
      for (const Packing packing : {Packing::int8, Packing::int4}) {
        const int64_t bytes = quantized_bytes(shape, packing), per_word = packing == Packing::int8 ? 4 : 8;
        std::vector<uint32_t> want(static_cast<size_t>(bytes / 4));
        for (int64_t o = 0; o < blocks * 16; ++o) {
          for (int64_t g = 0; g < groups; ++g) {
            float w[kQuantGroup] = {};
            for (int64_t k = 0; k < kQuantGroup && g * kQuantGroup + k < shape[1] && o < shape[0]; ++k) {
              w[k] = static_cast<float>(values(o, g * kQuantGroup + k));
            }
            int codes[kQuantGroup];
            const float scale = quantize_by_hand(packing, w, codes);
            uint32_t* group = want.data() + (o / 16 * groups + g) * quant_group_bytes(packing) / 4;
            std::memcpy(group + o % 16, &scale, 4);
            for (int64_t k = 0; k < kQuantGroup; ++k) {
              const int64_t j = k % per_word, bit = packing == Packing::int8 ? 8 * j : j / 2 * 4 + j % 2 * 16;
              const uint32_t mask = packing == Packing::int8 ? 255 : 15;
              group[16 + k / per_word * 16 + o % 16] |= (static_cast<uint32_t>(codes[k]) & mask) << bit;
            }
          }
        }
        for_each_isa([&](Isa isa) {
          const Param got = quantized(bench, rows, packing);
          EXPECT_EQ(std::memcmp(got.value.data, want.data(), static_cast<size_t>(bytes)), 0)
              << name_of(isa) << ' ' << name_of(dtype) << " shape " << i << ' ' << static_cast<int>(packing);
        });
      }
    }
  }
}

TEST(Quantized, SquaresThatOverflowFloatAreNoObstacle) {
  Workbench bench(10);
  const Tensor rows = bench.tensor({2, 64}, kMixed);
  for (int64_t i = 0; i < rows.size(); ++i) rows.ptr<float>()[i] *= 1e30f;
  for (const Packing packing : {Packing::int8, Packing::int4}) {
    const Param weight = quantized(bench, rows, packing);
    for (int64_t k = 0; k < 64; ++k) EXPECT_NEAR(quantized_weight(weight, 0, k), rows.row<float>(0)[k], 0.19e30) << k;
  }
}

TEST(Quantized, ZerosStayZerosAndWhatIsNotFiniteIsAnError) {
  Workbench bench(8);
  const Tensor rows = bench.tensor({3, 130}, kMixed);
  for (const Packing packing : {Packing::int8, Packing::int4}) {
    std::fill_n(rows.ptr<float>(), rows.size(), 0.0f);
    const Param weight = quantized(bench, rows, packing);
    for (int64_t k = 0; k < 130; ++k) ASSERT_EQ(quantized_weight(weight, 1, k), 0);
    for (const float bad : {__builtin_nanf(""), -__builtin_nanf(""), __builtin_inff(), -__builtin_inff()}) {
      rows.ptr<float>()[200] = bad;
      for_each_isa([&](Isa) { EXPECT_THROW(quantized(bench, rows, packing), Error); });
    }
  }
}

TEST(Quantized, GroupsHaveTheBitsOfMatmul) {
  Workbench bench(9);
  const std::vector<int64_t> offsets = {0, 3, 3, 40};
  const Tensor x = bench.matrix(40, 150, kMixed, true), at = bench.integers(offsets);
  for (const Packing packing : {Packing::int8, Packing::int4}) {
    std::vector<Param> weights;
    for (int g = 0; g < 3; ++g) weights.push_back(quantized(bench, bench.tensor({50, 150}, kMixed), packing));
    for_each_isa([&](Isa) {
      Lab lab(2);
      Context ctx = lab.ctx();
      const Tensor y = grouped_matmul(ctx, x, weights, at);
      for (size_t g = 0; g < 3; ++g) {
        const Tensor alone = matmul(ctx, x.slice(offsets[g], offsets[g + 1]), weights[g]);
        EXPECT_EQ(bits_of(y.slice(offsets[g], offsets[g + 1])), bits_of(alone));
      }
    });
  }
}

}  // namespace
}  // namespace elapid::testing
