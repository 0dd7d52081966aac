#include "elapid/ops/rms_norm/rms_norm.h"

namespace elapid {
namespace {

Tensor norm(Context& ctx, const Tensor& x, const Tensor& z, const Param& weight, float eps, int64_t groups,
            bool norm_before_gate) {
  const int64_t d = x.cols();
  require(takes_activations(ctx, x.dtype), "rms_norm: x must be f32 (on CUDA also bf16), got ", name_of(x.dtype));
  require(!weight || (weight.value.dtype == DType::f32 && weight.value.size() == d), "rms_norm: ", weight.name,
          " must be f32 with ", d, " elements, got ", weight.value.size());
  require(!z || (z.dtype == x.dtype && z.rows() == x.rows() && z.cols() == d),
          "rms_norm: z must have the type and shape of x, ", name_of(x.dtype), " [", x.rows(), ", ", d, "], got [",
          z.rows(), ", ", z.cols(), "]");
  require(groups >= 1 && d % groups == 0, "rms_norm: groups must divide ", d, " columns, got ", groups);
  const Tensor y = ctx.arena.alloc({x.rows(), d}, ctx.activations);
  launch(ctx, RmsNormForward{x, z, weight.value, y, eps, groups, norm_before_gate});
  return y;
}

}  // namespace

Tensor rms_norm(Context& ctx, const Tensor& x, const Param& weight, float eps) {
  return norm(ctx, x, {}, weight, eps, 1, false);
}

Tensor gated_rms_norm(Context& ctx, const Tensor& x, const Tensor& z, const Param& weight, float eps, int64_t groups,
                      bool norm_before_gate) {
  return norm(ctx, x, z, weight, eps, groups, norm_before_gate);
}

}  // namespace elapid
