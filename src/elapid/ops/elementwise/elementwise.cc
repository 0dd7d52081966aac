#include "elapid/ops/elementwise/elementwise.h"

namespace elapid {
namespace {

void require_same(const Context& ctx, const char* op, const Tensor& a, const Tensor& b) {
  require(takes_activations(ctx, a.dtype) && b.dtype == a.dtype && a.rows() == b.rows() && a.cols() == b.cols(), op,
          ": operands must be f32 (on CUDA also bf16) of one shape, got ", name_of(a.dtype), " [", a.rows(), ", ",
          a.cols(), "] and ", name_of(b.dtype), " [", b.rows(), ", ", b.cols(), "]");
}

}  // namespace

Tensor concat_columns(Context& ctx, const Tensor& a, const Tensor& b) {
  require(takes_activations(ctx, a.dtype) && b.dtype == a.dtype && a.rows() == b.rows(),
          "concat_columns: operands must be f32 (on CUDA also bf16) of as many rows, got ", name_of(a.dtype), " with ",
          a.rows(), " and ", name_of(b.dtype), " with ", b.rows());
  const Tensor y = ctx.arena.alloc({a.rows(), a.cols() + b.cols()}, a.dtype);
  launch(ctx, ConcatColumnsForward{a, b, y});
  return y;
}

Tensor add(Context& ctx, const Tensor& a, const Tensor& b) {
  require_same(ctx, "add", a, b);
  const Tensor y = ctx.arena.alloc({a.rows(), a.cols()}, a.dtype);
  launch(ctx, ScaleAddForward{a, {}, b, y, 1});
  return y;
}

Tensor scale(Context& ctx, const Tensor& x, float factor) {
  require(takes_activations(ctx, x.dtype), "scale: x must be f32 (on CUDA also bf16), got ", name_of(x.dtype));
  const Tensor y = ctx.arena.alloc({x.rows(), x.cols()}, x.dtype);
  launch(ctx, ScaleAddForward{x, {}, {}, y, factor});
  return y;
}

void scale_columns(Context& ctx, const Tensor& x, const Tensor& factors) {
  require(takes_activations(ctx, x.dtype), "scale_columns: x must be f32 (on CUDA also bf16), got ", name_of(x.dtype));
  require(factors.dtype == DType::f32 && factors.size() == x.cols(), "scale_columns: factors must be f32 with ",
          x.cols(), " elements, got ", name_of(factors.dtype), " with ", factors.size());
  const Arena::Scope scope(ctx.arena);
  launch(ctx, ScaleAddForward{x, upload_values(ctx, factors), {}, x, 1});
}

Tensor silu_gate(Context& ctx, const Tensor& x, const Tensor& z) {
  require_same(ctx, "silu_gate", x, z);
  const Tensor y = ctx.arena.alloc({x.rows(), x.cols()}, x.dtype);
  launch(ctx, SiluGateForward{x, z, y});
  return y;
}

}  // namespace elapid
