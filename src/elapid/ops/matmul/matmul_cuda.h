#pragma once

// Products of bf16 operands by cublasLt, behind the front of matmul.h. Compiled in builds with CUDA only.

#include "elapid/ops/matmul/matmul.h"

namespace elapid {

// y = alpha · x · Wᵀ + add, without the bias; x and W bf16, whose rows begin at multiples of 16 bytes. False when
// cublasLt has nothing for these operands; then nothing was computed.
bool library_matmul(Cuda gpu, const MatmulForward& args);

}  // namespace elapid
