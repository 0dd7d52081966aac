#include "elapid/core/tensor.h"

#include <gtest/gtest.h>
#include <numeric>
#include <type_traits>
#include <vector>

namespace elapid {
namespace {

static_assert(std::is_trivially_copyable_v<Tensor>);

class TensorViews : public ::testing::Test {
 protected:
  TensorViews() : values_(60) {
    std::iota(values_.begin(), values_.end(), 0.0f);
    matrix_ = Tensor(values_.data(), DType::f32, {6, 10});
  }
  std::vector<float> values_;
  Tensor matrix_;
};

TEST_F(TensorViews, DenseTensorsHaveRowMajorStrides) {
  const Tensor t(values_.data(), DType::f32, {3, 4, 5});
  EXPECT_EQ(t.strides[0], 20);
  EXPECT_EQ(t.strides[1], 5);
  EXPECT_EQ(t.strides[2], 1);
  EXPECT_EQ(t.size(), 60);
  EXPECT_EQ(t.bytes(), 240);
  EXPECT_EQ(t.rows(), 12);
  EXPECT_EQ(t.cols(), 5);
  EXPECT_EQ(t.row<float>(7)[2], 37);
  EXPECT_TRUE(t.dense());
}

TEST_F(TensorViews, ColumnsAreAViewOfTheSameMemory) {
  const Tensor c = matrix_.columns(3, 7);
  EXPECT_EQ(c.shape, Shape(6, 4));
  EXPECT_EQ(c.row_stride(), 10);
  EXPECT_FALSE(c.dense());
  EXPECT_EQ(c.row<float>(2)[1], 24);
  c.row<float>(2)[1] = -1;
  EXPECT_EQ(values_[24], -1);
  const Tensor inner = c.columns(1, 3);
  EXPECT_EQ(inner.row<float>(5)[0], 54);
  EXPECT_EQ(matrix_.columns(4, 4).size(), 0);
  EXPECT_TRUE(matrix_.columns(0, 10).dense());
}

TEST_F(TensorViews, SlicesKeepStrides) {
  const Tensor s = matrix_.slice(2, 5);
  EXPECT_EQ(s.shape, Shape(3, 10));
  EXPECT_EQ(s.ptr<float>()[0], 20);
  const Tensor both = matrix_.columns(3, 7).slice(1, 2);
  EXPECT_EQ(both.row<float>(0)[0], 13);
  EXPECT_TRUE(both.dense()) << "one row is dense whatever the stride";
  const Tensor third = Tensor(values_.data(), DType::f32, {3, 4, 5}).slice(1, 3);
  EXPECT_EQ(third.row<float>(0)[0], 20);
  EXPECT_EQ(third.rows(), 8);
  EXPECT_EQ(matrix_.slice(6, 6).size(), 0);
}

TEST_F(TensorViews, ReshapeKeepsElements) {
  const Tensor t = matrix_.reshape({4, 15});
  EXPECT_EQ(t.row<float>(1)[0], 15);
  EXPECT_EQ(matrix_.reshape(60).cols(), 60);
  EXPECT_EQ(matrix_.reshape(60).rows(), 1);
}

TEST_F(TensorViews, VectorsAreOneRowAndScalarsOneElement) {
  const Tensor v(values_.data(), DType::f32, 7);
  EXPECT_EQ(v.rows(), 1);
  EXPECT_EQ(v.cols(), 7);
  EXPECT_EQ(v.row_stride(), 7);
  const Tensor scalar(values_.data(), DType::f32, Shape());
  EXPECT_EQ(scalar.size(), 1);
  EXPECT_EQ(scalar.bytes(), 4);
}

TEST_F(TensorViews, AbsentIsNotEmpty) {
  EXPECT_FALSE(Tensor());
  const Tensor empty(values_.data(), DType::bf16, {0, 5});
  EXPECT_TRUE(empty);
  EXPECT_EQ(empty.size(), 0);
  EXPECT_EQ(empty.bytes(), 0);
}

TEST(Shapes, CompareByRankAndDimensions) {
  EXPECT_EQ(Shape(2, 3), Shape(2, 3));
  EXPECT_FALSE(Shape(2, 3) == Shape(3, 2));
  EXPECT_FALSE(Shape(2) == Shape(2, 1));
  EXPECT_EQ(Shape(2, 3, 4, 5).size(), 120);
  EXPECT_EQ(Shape(2, 0, 4).size(), 0);
  EXPECT_EQ(Shape(int64_t{1} << 40, 3).size(), int64_t{3} << 40);
}

}  // namespace
}  // namespace elapid
