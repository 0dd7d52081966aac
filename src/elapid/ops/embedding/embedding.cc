#include "elapid/ops/embedding/embedding.h"

namespace elapid {

Tensor embedding(Context& ctx, const Tensor& tokens, const Param& table, float scale, const Tensor& uploaded) {
  require(tokens.dtype == DType::i32, "embedding: tokens must be i32, got ", name_of(tokens.dtype));
  require(table.packing == Packing::rows && table.value.shape.rank == 2, "embedding: ", table.name,
          " must be a matrix of rows");
  const int64_t vocab = table.value.shape[0];
  for (int64_t t = 0; t < tokens.size(); ++t) {
    const int32_t id = tokens.ptr<int32_t>()[t];
    require(id >= 0 && id < vocab, "embedding: token ids must be 0 to ", vocab - 1, ", got ", id, " at position ", t);
  }
  const Tensor y = ctx.arena.alloc({tokens.size(), table.value.cols()}, DType::f32);
  const Arena::Scope scope(ctx.arena);
  launch(ctx, EmbeddingForward{uploaded ? uploaded : upload_values(ctx, tokens), table.value, y, scale});
  return y;
}

}  // namespace elapid
