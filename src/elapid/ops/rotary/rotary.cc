#include "elapid/ops/rotary/rotary.h"

#include "elapid/ops/sequences.h"

#include <limits>

namespace elapid {

Tensor rotary(Context& ctx, const Tensor& x, int64_t heads, const Rotary& rotary, const Batch& batch,
              const Tensor& out) {
  const Tensor& f = rotary.inverse_frequencies;
  require(takes_activations(ctx, x.dtype) && x.shape.rank == 2,
          "rotary: x must be a matrix of f32 (on CUDA also bf16), got ", name_of(x.dtype), " of rank ", x.shape.rank);
  require(heads >= 1 && x.cols() % heads == 0, "rotary: heads must divide the columns of x, ", x.cols(), ", got ",
          heads);
  const int64_t head_dim = x.cols() / heads;
  require(f.dtype == DType::f32 && f.shape.rank == 1 && (f || f.size() == 0) && 2 * f.size() <= head_dim,
          "rotary: inverse frequencies must be f32 and at most half of ", head_dim, " elements, got ", f.size());
  require(!out || (out.dtype == x.dtype && out.shape == x.shape), "rotary: out must be ", name_of(x.dtype), " [",
          x.rows(), ", ", x.cols(), "], got ", out.cols(), " columns");
  check_sequences("rotary", batch, x.rows(), std::numeric_limits<int64_t>::max());
  check_past("rotary", batch);
  const Tensor y = out ? out : ctx.arena.alloc({x.rows(), x.cols()}, x.dtype);
  const Arena::Scope scope(ctx.arena);
  const Tensor turns = ctx.arena.alloc({x.rows(), 2, rotary.interleaved ? 2 * f.size() : f.size()}, DType::f32);
  const BatchArrays at = arrays_of(ctx, batch);
  launch(ctx, RotaryForward{x, upload_values(ctx, f), y, at.offsets, at.past, turns, head_dim, rotary.scaling,
                            rotary.alpha, rotary.interleaved});
  return y;
}

}  // namespace elapid
