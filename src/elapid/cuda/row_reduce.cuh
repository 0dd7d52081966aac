#pragma once

// Kernels with one block a row whose first pass keeps the row, as floats, in shared memory for the next. For *.cu
// files.

#include "elapid/cuda/elements.cuh"

namespace elapid::cuda {

inline constexpr int64_t kMostRowThreads = 512;

// Threads for a row of `columns` in runs of N: whole warps, by the width alone, so that a row's sums are added in the
// same order whatever its neighbours.
inline unsigned row_threads(int64_t columns, int64_t n) {
  return static_cast<unsigned>(std::min(kMostRowThreads, ceil_div(ceil_div(columns, n), int64_t{kWarp}) * kWarp));
}

// Whether a row fits into the shared memory that needs no permission; else each pass reads its operands again.
inline constexpr int64_t kKeptColumns = 11 * 1024;
inline size_t kept_bytes(int64_t columns) {
  return columns <= kKeptColumns ? static_cast<size_t>(columns) * sizeof(float) : 0;
}

}  // namespace elapid::cuda
