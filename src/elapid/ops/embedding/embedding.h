#pragma once

// y[t] = scale · table[tokens[t]], in float32.

#include "elapid/core/kernel.h"
#include "elapid/core/param.h"

namespace elapid {

// table [vocab, d_model] f32, bf16 or f16, rows as in the checkpoint (any alignment); tokens [T] i32, in host memory;
// `uploaded`: the same on a device, or empty. Returns [T, d_model] f32. An Error when an id lies outside the table.
Tensor embedding(Context& ctx, const Tensor& tokens, const Param& table, float scale, const Tensor& uploaded = {});

struct EmbeddingForward {
  Tensor tokens, table, y;
  float scale;
};
ELAPID_KERNEL(EmbeddingForward)
ELAPID_CUDA_KERNEL(EmbeddingForward)

}  // namespace elapid
