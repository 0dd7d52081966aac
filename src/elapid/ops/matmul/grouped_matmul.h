#pragma once

// A matmul whose rows come in groups, each with a weight of its own: y[r] = x[r] · W_gᵀ for rows r of group g, which
// are offsets[g] … offsets[g+1]. It is what the experts of a mixture compute. Rows of a group are multiplied as a
// matrix, and a row's bits are those that matmul() gives for it alone.

#include "elapid/ops/matmul/matmul.h"

#include <span>

namespace elapid {

// On CUDA weights are plain rows, offsets lie on the device and are not checked, and the last sentence holds of f32
// arithmetic; x may be bf16, and the result is of ctx.activations.
//
// x [rows, in] f32; weights, one a group, [out, in], of one shape and type, packed by pack_weight(); offsets
// [groups + 1] i64 from 0 to rows. Returns [rows, out] f32.
Tensor grouped_matmul(Context& ctx, const Tensor& x, std::span<const Param> weights, const Tensor& offsets);

struct GroupedMatmulForward {
  Tensor x, y;
  const Param* weights;  // one a group, at least one
  Tensor offsets;        // [groups + 1] i64
  Tensor first_task;     // scratch [groups + 1] i64
  Tensor rounded;        // as MatmulForward's
  Tensor addresses{};    // on CUDA [groups] i64: the weights'
};
ELAPID_KERNEL(GroupedMatmulForward)
ELAPID_AMX_KERNEL(GroupedMatmulForward)
ELAPID_CUDA_KERNEL(GroupedMatmulForward)

}  // namespace elapid
