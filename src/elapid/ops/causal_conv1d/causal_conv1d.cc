#include "elapid/ops/causal_conv1d/causal_conv1d.h"

#include "elapid/ops/sequences.h"

namespace elapid {

Tensor causal_conv1d(Context& ctx, const Tensor& x, const CausalConv1d& conv, const Batch& batch, const Tensor& state) {
  const Tensor& weight = conv.weight.value;
  const int64_t taps = weight.rows(), channels = x.cols();
  require(x.dtype == DType::f32, "causal_conv1d: x must be f32, got ", name_of(x.dtype));
  require(weight.dtype == DType::f32 && weight.cols() == channels, "causal_conv1d: weight must be f32 with ", channels,
          " channels, got ", weight.cols());
  require(taps >= 1 && taps <= kMostConvTaps, "causal_conv1d: taps must be 1 to ", kMostConvTaps, ", got ", taps);
  require(!conv.bias || conv.bias.value.size() == channels, "causal_conv1d: bias must have ", channels,
          " elements, got ", conv.bias.value.size());
  check_sequences("causal_conv1d", batch, x.rows(), state, {taps - 1, channels});
  const Tensor y = ctx.arena.alloc({x.rows(), channels}, DType::f32);
  launch(ctx, CausalConv1dForward{x, weight, conv.bias.value, y, batch.offsets, batch.slots, state, conv.silu});
  return y;
}

}  // namespace elapid
