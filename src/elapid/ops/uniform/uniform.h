#pragma once

// Random weights: element j of y is low + (high − low) · u, with u in [0, 1) from 24 bits of word j % 4 of
// philox(seed, j / 4, stream), rounded to y's type. The same bits on every level and for any number of threads.

#include "elapid/core/kernel.h"
#include "elapid/core/tensor.h"

namespace elapid {

struct Uniform {
  uint64_t seed, stream;
  float low, high;
  Tensor y;  // dense, f32, bf16 or f16
};
ELAPID_KERNEL(Uniform)

// y's elements, on host memory.
void fill_uniform(ThreadPool& threads, const Uniform& uniform);

}  // namespace elapid
