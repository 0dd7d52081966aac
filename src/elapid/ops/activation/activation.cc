#include "elapid/ops/activation/activation.h"

namespace elapid {

Tensor activation(Context& ctx, const Tensor& x, Activation act, bool gated, float gate_multiplier) {
  require(takes_activations(ctx, x.dtype), "activation: x must be f32 (on CUDA also bf16), got ", name_of(x.dtype));
  require(!gated || x.cols() % 2 == 0, "activation: gated x must have an even number of columns, got ", x.cols());
  const Tensor y = ctx.arena.alloc({x.rows(), gated ? x.cols() / 2 : x.cols()}, x.dtype);
  launch(ctx, ActivationForward{x, y, act, gated, gate_multiplier});
  return y;
}

}  // namespace elapid
