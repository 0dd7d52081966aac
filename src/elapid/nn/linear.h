#pragma once

// y = alpha · (x · weightᵀ + bias) + add.

#include "elapid/nn/parameter.h"
#include "elapid/ops/matmul/matmul.h"

namespace elapid {

struct Linear {
  int64_t in = 0, out = 0;
  bool has_bias = false;
  Param weight, bias;

  // x [T, in] → [T, out]; `epilogue.bias` is this layer's own.
  Tensor operator()(Context& ctx, const Tensor& x, Epilogue epilogue = {}) const {
    if (has_bias) epilogue.bias = bias.value;  // a Param has a name, whose copy would allocate
    return matmul(ctx, x, weight, epilogue);
  }

  void visit(const std::string& prefix, const ParameterVisitor& f, Role role = Role::matrix) {
    f({prefix + "weight", &weight, {out, in}, role});
    if (has_bias) f({prefix + "bias", &bias, {out}, Role::vector});
  }
};

}  // namespace elapid
