#include "elapid/ops/gather_rows/gather_rows.h"

namespace elapid {

Tensor gather_rows(Context& ctx, const Tensor& x, const Tensor& rows, const Tensor& uploaded) {
  require(takes_activations(ctx, x.dtype), "gather_rows: x must be f32 (on CUDA also bf16), got ", name_of(x.dtype));
  require(rows.dtype == DType::i64, "gather_rows: rows must be i64, got ", name_of(rows.dtype));
  int64_t last = -1;
  for (int64_t r = 0; r < rows.size(); ++r) {
    const int64_t row = rows.ptr<int64_t>()[r];
    require(row > last && row < x.rows(), "gather_rows: rows must increase and be below ", x.rows(), ", got ", row,
            " after ", last);
    last = row;
  }
  if (rows.size() == x.rows()) return x;
  const Tensor y = ctx.arena.alloc({rows.size(), x.cols()}, x.dtype);
  const Arena::Scope scope(ctx.arena);
  launch(ctx, GatherRowsForward{x, uploaded ? uploaded : upload_values(ctx, rows), y});
  return y;
}

}  // namespace elapid
