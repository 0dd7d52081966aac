#pragma once

// Tensor cores and the copies that feed them, in the form that every device from compute capability 8.0 on has.

#include "elapid/cuda/launch.cuh"

namespace elapid::cuda {

__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Four 8×8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
__device__ inline void load_matrices(uint32_t (&r)[4], const bf16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void load_matrices_transposed(uint32_t (&r)[4], const bf16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// d += a · b: a [16, 16] by rows, b [16, 8] by columns, d [16, 8] float32. Lane l has of d the rows l / 4 and l / 4 +
// 8, the columns 2 (l % 4) and the next.
__device__ inline void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The four ways in which a lane addresses a 16×16 part of a tile in shared memory, whose first element is (row,
// column): rows of the part are those of a (or, transposed, its columns) …
__device__ inline const bf16* part_of_a(const bf16* tile, int stride, int row, int column) {
  const int lane = threadIdx.x % kWarp;
  return tile + (row + lane % 16) * stride + column + lane / 16 * 8;
}
__device__ inline const bf16* part_of_a_transposed(const bf16* tile, int stride, int row, int column) {
  const int lane = threadIdx.x % kWarp;
  return tile + (row + lane % 8 + lane / 16 * 8) * stride + column + lane / 8 % 2 * 8;
}
// … or the columns of two neighbouring b (transposed: their rows); registers 0 and 1 are the first one's.
__device__ inline const bf16* part_of_b(const bf16* tile, int stride, int row, int column) {
  return part_of_a_transposed(tile, stride, row, column);
}
__device__ inline const bf16* part_of_b_transposed(const bf16* tile, int stride, int row, int column) {
  return part_of_a(tile, stride, row, column);
}

__device__ inline uint32_t packed(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ inline float2 unpacked(uint32_t bits) {
  return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)};
}

// Sixteen bytes into shared memory while the thread goes on; zeros where `there` is false.
__device__ inline void copy_ahead(void* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0)
               : "memory");
}
__device__ inline void end_copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int left>
__device__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}

// A tile [rows, columns] of bf16 into shared memory, zero beyond `there_rows` and `there_columns`. `wide`: rows of
// `from` begin at multiples of 16 bytes, and there_columns is one of 8.
template <int rows, int columns>
__device__ void copy_tile(bf16* to, int to_stride, const bf16* from, int64_t from_stride, int64_t there_rows,
                          int64_t there_columns, bool wide, int thread, int threads) {
  if (wide) {
    // A thread keeps its columns; whole passes of the block over rows.
    constexpr int kPieces = columns / 8;
    const int column = thread % kPieces * 8, step = threads / kPieces;
    bf16* target = to + thread / kPieces * to_stride + column;
    const bf16* source = from + thread / kPieces * from_stride + column;
    const int last = column < there_columns ? static_cast<int>(min(int64_t{rows}, there_rows)) : 0;
#pragma unroll
    for (int row = thread / kPieces; row < rows; row += step) {
      copy_ahead(target, row < last ? source : from, row < last);
      target += step * to_stride;
      source += step * from_stride;
    }
  } else {
    for (int i = thread; i < rows * columns; i += threads) {
      const int row = i / columns, column = i % columns;
      const bool there = row < there_rows && column < there_columns;
      to[row * to_stride + column] = there ? from[row * from_stride + column] : __float2bfloat16_rn(0.0f);
    }
  }
}

// The same for elements of any type and a dense tile.
template <int rows, int columns, class T>
__device__ void copy_rows(T* to, const T* from, int64_t from_stride, int64_t there_rows, int64_t there_columns,
                          bool wide, int thread, int threads) {
  constexpr int kPack = Pack<T>::kSize;
  if constexpr (columns % kPack == 0) {
    if (wide) {
      constexpr int kPieces = columns / kPack;
      for (int i = thread; i < rows * kPieces; i += threads) {
        const int row = i / kPieces, column = i % kPieces * kPack;
        const bool there = row < there_rows && column < there_columns;
        copy_ahead(to + row * columns + column, there ? from + row * from_stride + column : from, there);
      }
      return;
    }
  }
  for (int i = thread; i < rows * columns; i += threads) {
    const int row = i / columns, column = i % columns;
    const bool there = row < there_rows && column < there_columns;
    to[row * columns + column] = there ? from[row * from_stride + column] : from_float<T>(0);
  }
}

}  // namespace elapid::cuda
