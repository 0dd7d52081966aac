#include "elapid/ops/matmul/matmul.h"

#include "elapid/ops/matmul/matmul_reference.h"
#include "tests/ops/harness.h"
#include "tests/ops/packed.h"

#include <cstring>

namespace elapid::testing {
namespace {

struct Case {
  int64_t rows, in, out;
  DType dtype = DType::f32;
  Range range = kMixed;
  bool strided = false, bias = false, add = false, in_place = false;
  float alpha = 1;
  Arithmetic arithmetic = Arithmetic::f32;
  DType activations = DType::f32;
};

Operation make(Workbench& bench, const Case& c) {
  const Tensor x = bench.matrix(c.rows, c.in, c.range, c.strided, c.activations);
  const Tensor rows = bench.tensor({c.out, c.in}, c.range, c.dtype, Alignment::none);
  const Param weight = packed(bench, rows, c.arithmetic), plain = unpacked(bench, rows, c.arithmetic);
  Epilogue epilogue;
  epilogue.alpha = c.alpha;
  if (c.bias) epilogue.bias = bench.tensor({c.out}, kMixed);
  if (c.add || c.in_place) epilogue.add = bench.matrix(c.rows, c.out, kMixed, c.strided, c.activations);
  if (c.in_place) {
    epilogue.out = epilogue.add;
  } else if (c.strided) {
    epilogue.out = bench.output(c.rows, c.out, true, c.activations);
  }
  if (epilogue.out) bench.writable(epilogue.out);
  reference::MatmulInputs in{reference::matrix_of(x), reference::matrix_of(rows), reference::matrix_of(epilogue.bias),
                             reference::matrix_of(epilogue.add), static_cast<double>(c.alpha)};
  const bool rounds = c.arithmetic == Arithmetic::bf16;
  if (rounds) {
    in.x = rounded_to_bf16(in.x);
    in.weight = rounded_to_bf16(in.weight);
  }
  reference::Expected want = reference::matmul(in);
  if (c.activations == DType::bf16) want = written_in_bf16(std::move(want));
  const auto run = [=, &bench](Context& ctx) {
    const Located at = bench.at(ctx);
    const Epilogue located{epilogue.alpha, at(epilogue.bias), at(epilogue.add), at(epilogue.out)};
    ctx.activations = c.activations;
    return std::vector{matmul(ctx, at(x), on_cuda(ctx.device) ? at(plain) : weight, located)};
  };
  return {run, {std::move(want)}, rounds};
}

Op<Case> op() {
  Op<Case> op;
  op.name = "matmul";
  const DType dtypes[] = {DType::f32, DType::bf16, DType::f16};
  int64_t i = 0;
  // Every height of a register tile and its neighbours, for each weight type; the other options take turns.
  for (const int64_t rows : {0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 24, 25, 37, 97, 193}) {
    for (const DType dtype : dtypes) {
      const int64_t depths[] = {64, 257, 33, 300, 512}, widths[] = {48, 130, 33, 16, 257};
      op.cases.push_back({rows, depths[i % 5], widths[i / 2 % 5], dtype, i % 2 == 0 ? kMixed : kPositive, i % 3 == 0,
                          i % 4 < 2, i % 5 < 2, i % 7 == 3, i % 2 == 0 ? 1.0f : -0.75f});
      ++i;
    }
  }
  for (const int64_t in : {1, 2, 3, 15, 16, 17, 31, 32, 33, 255, 256, 257, 511, 513, 1025}) {
    for (const DType dtype : dtypes) {
      op.cases.push_back({1, in, 40, dtype, kPositive});
      op.cases.push_back({14, in, 17, dtype, kMixed, true, true, true});
    }
  }
  for (const int64_t out : {0, 1, 2, 15, 16, 17, 31, 33, 127, 128, 129, 300}) {
    op.cases.push_back({1, 96, out, DType::bf16, kPositive, false, true});
    op.cases.push_back({9, 96, out, DType::f32, kPositive, true, false, true});
  }
  op.cases.push_back({2, 1100, 700, DType::bf16, kPositive});  // several tasks of several blocks
  // The same in bf16 arithmetic: heights and widths of a tile, of two and of a task, and their neighbours.
  for (const int64_t rows : {0, 1, 2, 4, 5, 7, 15, 16, 17, 31, 32, 33, 48, 65, 130}) {
    for (const DType dtype : dtypes) {
      const int64_t depths[] = {64, 257, 33, 300, 1}, widths[] = {48, 130, 33, 16, 257};
      op.cases.push_back({rows, depths[i % 5], widths[i / 2 % 5], dtype, i % 2 == 0 ? kMixed : kPositive, i % 3 == 0,
                          i % 4 < 2, i % 5 < 2, i % 7 == 3, i % 2 == 0 ? 1.0f : -0.75f, Arithmetic::bf16});
      ++i;
    }
  }
  for (const int64_t out : {0, 1, 15, 17, 31, 33, 63, 65, 300}) {
    op.cases.push_back({6, 96, out, DType::bf16, kPositive, false, true, false, false, 1, Arithmetic::bf16});
    op.cases.push_back({40, 96, out, DType::f32, kPositive, true, false, true, false, 1, Arithmetic::bf16});
  }
  op.cases.push_back({70, 8200, 33, DType::bf16, kPositive, false, false, false, false, 1, Arithmetic::bf16});
  op.describe = [](const Case& c) {
    return concat(c.rows, " x ", c.in, " -> ", c.out, " ", name_of(c.dtype), c.range.low < 0 ? " mixed" : " positive",
                  c.strided ? " strided" : "", c.bias ? " bias" : "",
                  c.in_place ? " in place"
                  : c.add    ? " add"
                             : "",
                  " alpha ", c.alpha, c.arithmetic == Arithmetic::bf16 ? " in bf16" : "");
  };
  op.make = make;
  return op;
}

TEST(Matmul, Forward) { check_forward(op()); }

// What the library multiplies, beyond a few rows and with aligned operands, and whole tiles of few.
Op<Case> aligned_in_bf16() {
  Op<Case> aligned = op();
  aligned.name += " aligned in bf16";
  aligned.cases.clear();
  int64_t i = 0;
  for (const int64_t rows : {1, 3, 8, 9, 16, 17, 40, 130}) {
    for (const int64_t in : {8, 64, 264, 2048}) {
      for (const int64_t out : {16, 40, 257, 512}) {
        aligned.cases.push_back({rows, in, out, DType::bf16, i % 2 == 0 ? kMixed : kPositive, false, i % 3 == 0,
                                 i % 5 < 2, i % 4 == 3, i % 7 < 4 ? 1.0f : -0.75f, Arithmetic::bf16});
        ++i;
      }
    }
  }
  return aligned;
}
Op<Case> with_bf16(Op<Case> op) {
  op.name += " of bf16";
  for (Case& c : op.cases) c.activations = DType::bf16;
  return op;
}
TEST(Matmul, OnCuda) {
  check_on_cuda(op());
  check_on_cuda(aligned_in_bf16());
}
TEST(Matmul, Bf16OnCuda) {
  check_on_cuda(with_bf16(op()));
  check_on_cuda(with_bf16(aligned_in_bf16()));
}

// In f32 arithmetic a row's bits are those of the row alone, whatever kernel takes how many rows.
TEST(Matmul, RowIsTheSameAloneOnCuda) {
  std::string why;
  if (!has_cuda(why)) GTEST_SKIP() << why;
  for (const Shape shape : {Shape(40, 96), Shape(1100, 2048), Shape(2100, 256), Shape(4200, 64), Shape(30, 33)}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      Workbench bench(7);
      const Tensor x = bench.matrix(37, shape[1], kMixed, false);
      const Param weight = unpacked(bench, bench.tensor(shape, kMixed, dtype));
      Lab lab(1, {DeviceType::cuda, 0});
      Context ctx = lab.ctx();
      bench.snapshot();
      bench.copy_to_device(ctx, true);
      const Located at = bench.at(ctx);
      const Bits all = bits_of(copy_to_host(ctx, matmul(ctx, at(x), at(weight))).tensor);
      for (const int64_t row : {0, 5, 36}) {
        for (const int64_t count : {1, 2, 9}) {
          if (row + count > x.rows()) continue;
          const Bits some = bits_of(copy_to_host(ctx, matmul(ctx, at(x).slice(row, row + count), at(weight))).tensor);
          EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin() + row * shape[0]))
              << shape[0] << " x " << shape[1] << ", " << count << " rows from " << row;
        }
      }
    }
  }
}

constexpr Shape kPackedShapes[] = {{19, 35}, {16, 32}, {1, 1}, {33, 130}, {50, 7}, {160, 100}, {15, 64}};

// Rows of `columns` as a checkpoint may have them: in two parts, which are columns of wider matrices.
std::vector<Tensor> parts_of(Workbench& bench, Shape shape, DType dtype) {
  const int64_t first = shape[0] / 3, margin = 5;
  std::vector<Tensor> parts;
  for (const int64_t rows : {first, shape[0] - first}) {
    const Tensor wide = bench.tensor({rows, shape[1] + 2 * margin}, kMixed, dtype, Alignment::none);
    parts.push_back(wide.columns(margin, margin + shape[1]));
  }
  return parts;
}
const char* element_of(const std::vector<Tensor>& parts, int64_t row, int64_t column) {
  const bool second = row >= parts[0].shape[0];
  const Tensor& t = parts[second ? 1 : 0];
  if (second) row -= parts[0].shape[0];
  return static_cast<const char*>(t.data) + (row * t.row_stride() + column) * size_of(t.dtype);
}

TEST(Matmul, PackedOrderIsWhatTheContractSays) {
  for (const Shape shape : kPackedShapes) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      Workbench bench(2);
      const std::vector<Tensor> parts = parts_of(bench, shape, dtype);
      const int64_t size = size_of(dtype), depth = packed_depth(shape[1]), blocks = packed_blocks(shape[0]);
      ASSERT_EQ(packed_bytes(shape, dtype), blocks * 16 * depth * size);
      const char zeros[4] = {};
      for_each_isa([&](Isa isa) {
        SCOPED_TRACE(concat(name_of(isa), ' ', name_of(dtype), ' ', shape[0], " x ", shape[1]));
        const Tensor memory = bench.output(1, packed_bytes(shape, dtype) / 4, false);
        bench.writable(memory);
        bench.snapshot();
        pack_weight(threads(3), parts, dtype, memory.data);
        EXPECT_EQ(bench.damage(), "");
        for (int64_t o = 0; o < blocks * 16; ++o) {
          for (int64_t k = 0; k < depth; ++k) {
            const int64_t in_block = dtype == DType::bf16 ? (k / 2 * 16 + o % 16) * 2 + k % 2 : k * 16 + o % 16;
            const char* at = static_cast<const char*>(memory.data) + (o / 16 * depth * 16 + in_block) * size;
            const char* from = o < shape[0] && k < shape[1] ? element_of(parts, o, k) : zeros;
            ASSERT_EQ(std::memcmp(at, from, static_cast<size_t>(size)), 0) << "output " << o << ", input " << k;
          }
        }
      });
    }
  }
}

// Every float16, and floats of every exponent: around ties, NaN with a payload that rounding would lose, infinities.
TEST(Matmul, PackedOrderOfRoundedWeightsIsThatOfRoundedRows) {
  constexpr int64_t kOut = 19, kIn = 3500;
  for (const DType dtype : {DType::f32, DType::f16}) {
    Workbench bench(6);
    const Tensor rows = bench.tensor({kOut, kIn}, kMixed, dtype),
                 by_hand = bench.tensor({kOut, kIn}, kMixed, DType::bf16);
    for (int64_t i = 0; i < kOut * kIn; ++i) {
      if (dtype == DType::f16) {
        rows.ptr<Float16>()[i] = {static_cast<uint16_t>(i)};
        by_hand.ptr<BFloat16>()[i] = to_bf16(to_float(rows.ptr<Float16>()[i]));
      } else {
        constexpr uint32_t kLow[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, 0x10000, 0x18000, 0x3fffff};
        const uint32_t bits = (static_cast<uint32_t>(i) / 9 % 512 << 23) + kLow[i % 9];
        std::memcpy(rows.ptr<float>() + i, &bits, 4);
        by_hand.ptr<BFloat16>()[i] = to_bf16(rows.ptr<float>()[i]);
      }
    }
    const Param want = packed(bench, by_hand);
    const auto bytes = static_cast<size_t>(packed_bytes(rows.shape, DType::bf16));
    for_each_isa([&](Isa isa) {
      const Param got = packed(bench, rows, Arithmetic::bf16);
      EXPECT_EQ(got.value.dtype, DType::bf16);
      EXPECT_EQ(std::memcmp(got.value.data, want.value.data, bytes), 0) << name_of(isa) << ' ' << name_of(dtype);
    });
  }
}

TEST(Matmul, RowIsTheSameAloneAndInAnyBatch) {
  constexpr int64_t kRows = 40, kIn = 300, kOut = 150;
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    Workbench bench(3);
    const Tensor x = bench.matrix(kRows, kIn, kMixed, true);
    const Param weight = packed(bench, bench.tensor({kOut, kIn}, kMixed, dtype));
    for_each_isa([&](Isa) {
      Lab lab(2);
      Context ctx = lab.ctx();
      std::vector<Bits> rows;
      for (int64_t r = 0; r < kRows; ++r) rows.push_back(bits_of(matmul(ctx, x.slice(r, r + 1), weight)));
      for (int64_t first : {0, 3}) {
        for (int64_t count = 1; first + count <= kRows; ++count) {
          const Tensor y = matmul(ctx, x.slice(first, first + count), weight);
          for (int64_t r = 0; r < count; ++r) {
            ASSERT_EQ(bits_of(y.slice(r, r + 1)), rows[static_cast<size_t>(first + r)])
                << "row " << r << " of " << count;
          }
        }
      }
    });
  }
}

TEST(Matmul, NanStaysInItsRow) {
  Workbench bench(4);
  constexpr int64_t kRows = 30, kIn = 70, kOut = 50, kBad = 13;
  const Tensor x = bench.matrix(kRows, kIn, kMixed, true);
  const Tensor rows = bench.tensor({kOut, kIn}, kMixed, DType::bf16);
  uint32_t lowest_bit = 0x7f800001;  // a NaN that is none once its low half is gone
  float low_nan;
  std::memcpy(&low_nan, &lowest_bit, sizeof low_nan);
  for (const float bad : {__builtin_nanf(""), __builtin_inff(), low_nan}) {
    for_each_isa([&](Isa isa) {
      const Arithmetic arithmetic = static_cast<int>(isa) % 2 == 0 ? Arithmetic::f32 : Arithmetic::bf16;
      const Param weight = packed(bench, rows, arithmetic);
      Lab lab(3);
      Context ctx = lab.ctx();
      const float kept = x.row<float>(kBad)[5];
      const Tensor clean = matmul(ctx, x, weight);
      x.row<float>(kBad)[5] = bad;
      const Tensor y = matmul(ctx, x, weight);
      x.row<float>(kBad)[5] = kept;
      for (int64_t r = 0; r < kRows; ++r) {
        EXPECT_TRUE(r == kBad || bits_of(y.slice(r, r + 1)) == bits_of(clean.slice(r, r + 1))) << "row " << r;
      }
      for (int64_t o = 0; o < kOut; ++o) EXPECT_FALSE(std::isfinite(y.row<float>(kBad)[o]));
    });
  }
}

TEST(Matmul, OperandsThatDoNotFitAreErrors) {
  Workbench bench(5);
  Lab lab;
  Context ctx = lab.ctx();
  const Tensor rows = bench.tensor({6, 8}, kMixed);
  const Param weight = packed(bench, rows);
  const Tensor x = bench.matrix(3, 8, kMixed, false);
  EXPECT_NO_THROW(matmul(ctx, x, weight));
  EXPECT_THROW(matmul(ctx, x.columns(0, 7), weight), Error);
  EXPECT_THROW(matmul(ctx, x, bench.param(rows)), Error) << "not packed";
  EXPECT_THROW(matmul(ctx, x.columns(0, 0), packed(bench, bench.tensor({6, 0}, kMixed))), Error) << "no inputs";
  Epilogue bias;
  bias.bias = bench.tensor({5}, kMixed);
  EXPECT_THROW(matmul(ctx, x, weight, bias), Error);
  Epilogue add;
  add.add = bench.matrix(2, 6, kMixed, false);
  EXPECT_THROW(matmul(ctx, x, weight, add), Error);
  EXPECT_THROW(pack_weight(ctx.threads, bench.integers({1, 2}).reshape({1, 2}), rows.data), Error);
  EXPECT_THROW(pack_weight(ctx.threads, {&rows, 1}, DType::f16, rows.data), Error);
  Param unrounded = weight;
  unrounded.arithmetic = Arithmetic::bf16;
  EXPECT_THROW(matmul(ctx, x, unrounded), Error) << "f32 weights in bf16 arithmetic";
}

}  // namespace
}  // namespace elapid::testing
