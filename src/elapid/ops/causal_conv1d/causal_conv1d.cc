#include "elapid/ops/causal_conv1d/causal_conv1d.h"

#include "elapid/ops/sequences.h"

namespace elapid {

Tensor causal_conv1d(Context& ctx, const Tensor& x, const CausalConv1d& conv, const Batch& batch, const Tensor& state) {
  const Tensor& weight = conv.weight.value;
  const int64_t taps = weight.rows(), channels = x.cols();
  require(takes_activations(ctx, x.dtype), "causal_conv1d: x must be f32 (on CUDA also bf16), got ", name_of(x.dtype));
  require(weight.dtype == DType::f32 && weight.cols() == channels, "causal_conv1d: weight must be f32 with ", channels,
          " channels, got ", weight.cols());
  require(taps >= 1 && taps <= kMostConvTaps, "causal_conv1d: taps must be 1 to ", kMostConvTaps, ", got ", taps);
  require(!conv.bias || conv.bias.value.size() == channels, "causal_conv1d: bias must have ", channels,
          " elements, got ", conv.bias.value.size());
  check_sequences("causal_conv1d", batch, x.rows(), state, {taps - 1, channels});
  const Tensor y = ctx.arena.alloc({x.rows(), channels}, x.dtype);
  const Arena::Scope scope(ctx.arena);
  const BatchArrays arrays = arrays_of(ctx, batch);
  launch(ctx, CausalConv1dForward{x, weight, conv.bias.value, y, arrays.offsets, arrays.slots, state, conv.silu,
                                  longest_sequence(batch)});
  return y;
}

}  // namespace elapid
