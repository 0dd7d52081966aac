#include "elapid/ops/cross_entropy/cross_entropy.h"

namespace elapid {

Tensor cross_entropy(Context& ctx, const Tensor& logits, const Tensor& labels) {
  const int64_t vocab = logits.cols();
  require(logits.dtype == DType::f32, "cross_entropy: logits must be f32, got ", name_of(logits.dtype));
  require(labels.dtype == DType::i64 && labels.size() == logits.rows(), "cross_entropy: labels must be i64 with ",
          logits.rows(), " elements, got ", name_of(labels.dtype), " with ", labels.size());
  for (int64_t r = 0; r < labels.size(); ++r) {
    const int64_t label = labels.ptr<int64_t>()[r];
    require(label == kIgnoreLabel || (label >= 0 && label < vocab), "cross_entropy: labels must be ", kIgnoreLabel,
            " or 0 to ", vocab - 1, ", got ", label, " at position ", r);
  }
  const Tensor nll = ctx.arena.alloc({logits.rows()}, DType::f32);
  const Arena::Scope scope(ctx.arena);
  launch(ctx, CrossEntropyForward{logits, upload_values(ctx, labels), nll});
  return nll;
}

}  // namespace elapid
