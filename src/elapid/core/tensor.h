#pragma once

// Tensor: a trivially copyable view of memory that somebody else owns (Buffer, Arena, mapped file). Copying it copies
// no data. At most four dimensions; the last one is contiguous; strides are in elements.

#include "elapid/core/dtype.h"
#include "elapid/core/inline.h"

#include <cassert>
#include <cstdint>

namespace elapid {

inline constexpr int kMaxRank = 4;

struct Shape {
  int64_t dims[kMaxRank] = {0, 0, 0, 0};
  int rank = 0;

  ELAPID_INLINE constexpr Shape() = default;
  ELAPID_INLINE constexpr Shape(int64_t a) : dims{a, 0, 0, 0}, rank(1) {}  // NOLINT: implicit, so {n} reads as a shape
  ELAPID_INLINE constexpr Shape(int64_t a, int64_t b) : dims{a, b, 0, 0}, rank(2) {}
  ELAPID_INLINE constexpr Shape(int64_t a, int64_t b, int64_t c) : dims{a, b, c, 0}, rank(3) {}
  ELAPID_INLINE constexpr Shape(int64_t a, int64_t b, int64_t c, int64_t d) : dims{a, b, c, d}, rank(4) {}

  ELAPID_INLINE constexpr int64_t operator[](int i) const { return dims[i]; }
  ELAPID_INLINE constexpr int64_t size() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= dims[i];
    return n;
  }
  ELAPID_INLINE constexpr bool operator==(const Shape& other) const {
    if (rank != other.rank) return false;
    for (int i = 0; i < rank; ++i) {
      if (dims[i] != other.dims[i]) return false;
    }
    return true;
  }
};

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  Shape shape;
  int64_t strides[kMaxRank] = {0, 0, 0, 0};  // elements

  ELAPID_INLINE Tensor() = default;
  // A dense tensor over `data`.
  ELAPID_INLINE Tensor(void* data_, DType dtype_, Shape shape_) : data(data_), dtype(dtype_), shape(shape_) {
    int64_t stride = 1;
    for (int i = shape.rank - 1; i >= 0; --i) {
      strides[i] = stride;
      stride *= shape[i];
    }
  }

  // An empty tensor stands for an absent operand: no bias, no initial state.
  ELAPID_INLINE explicit operator bool() const { return data != nullptr; }

  ELAPID_INLINE int64_t size() const { return shape.size(); }
  ELAPID_INLINE int64_t bytes() const { return size() * size_of(dtype); }
  // The tensor as a matrix: all leading dimensions together, by the last one.
  ELAPID_INLINE int64_t cols() const { return shape.rank == 0 ? 0 : shape[shape.rank - 1]; }
  ELAPID_INLINE int64_t rows() const {
    int64_t n = 1;
    for (int i = 0; i + 1 < shape.rank; ++i) n *= shape[i];
    return n;
  }
  // Elements from one row to the next; rows must be evenly spaced (dense, or a column slice of a dense matrix).
  ELAPID_INLINE int64_t row_stride() const { return shape.rank >= 2 ? strides[shape.rank - 2] : cols(); }

  template <class T>
  ELAPID_INLINE T* ptr() const {
    assert(dtype == DTypeOf<T>::value);
    return static_cast<T*>(data);
  }
  // First element of row i of the matrix view.
  template <class T>
  ELAPID_INLINE T* row(int64_t i) const {
    return ptr<T>() + i * row_stride();
  }

  // Columns [begin, end) of a matrix, as a view: splitting a projection's output costs nothing.
  ELAPID_INLINE Tensor columns(int64_t begin, int64_t end) const {
    assert(shape.rank == 2 && 0 <= begin && begin <= end && end <= shape[1]);
    Tensor t = *this;
    t.data = static_cast<char*>(data) + begin * size_of(dtype);
    t.shape.dims[1] = end - begin;
    return t;
  }
  // Elements [begin, end) of the first dimension.
  ELAPID_INLINE Tensor slice(int64_t begin, int64_t end) const {
    assert(shape.rank >= 1 && 0 <= begin && begin <= end && end <= shape[0]);
    Tensor t = *this;
    t.data = static_cast<char*>(data) + begin * strides[0] * size_of(dtype);
    t.shape.dims[0] = end - begin;
    return t;
  }
  // Same elements, other shape; only for dense tensors.
  ELAPID_INLINE Tensor reshape(Shape s) const {
    assert(s.size() == size() && dense());
    return Tensor(data, dtype, s);
  }
  ELAPID_INLINE bool dense() const {
    int64_t stride = 1;
    for (int i = shape.rank - 1; i >= 0; --i) {
      if (shape[i] != 1 && strides[i] != stride) return false;
      stride *= shape[i];
    }
    return true;
  }
};

}  // namespace elapid
