#include "elapid/ops/layer_norm/layer_norm.h"

namespace elapid {

Tensor layer_norm(Context& ctx, const Tensor& x, const Param& weight, const Param& bias, float eps) {
  const int64_t d = x.cols();
  require(takes_activations(ctx, x.dtype), "layer_norm: x must be f32 (on CUDA also bf16), got ", name_of(x.dtype));
  for (const Param* p : {&weight, &bias}) {
    require(!*p || (p->value.dtype == DType::f32 && p->value.size() == d), "layer_norm: ", p->name,
            " must be f32 with ", d, " elements, got ", p->value.size());
  }
  const Tensor y = ctx.arena.alloc({x.rows(), d}, ctx.activations);
  launch(ctx, LayerNormForward{x, weight.value, bias.value, y, eps});
  return y;
}

}  // namespace elapid
