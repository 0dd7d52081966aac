#pragma once

// Ragged batches, as kernels see them.

#include "elapid/cuda/launch.cuh"

namespace elapid::cuda {

// The largest i with starts[i] <= at, for starts[0] <= at, among `count` of them: the sequence that holds a token. Of
// equal starts the last, so that empty sequences hold nothing.
__device__ inline int64_t range_of(const int64_t* starts, int64_t count, int64_t at) {
  int64_t low = 0, high = count - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (starts[middle] <= at) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

}  // namespace elapid::cuda
