#include "elapid/infer/score.h"

#include "elapid/core/error.h"
#include "elapid/ops/cross_entropy/cross_entropy.h"

#include <algorithm>

namespace elapid {

Scorer::Scorer(Engine& engine, std::function<void(float)> nll)
    : engine_(&engine), nll_(std::move(nll)), slot_(engine.states().acquire()) {}

void Scorer::push(std::span<const TokenId> ids) {
  const int64_t vocab = engine_->model().config().vocab;
  const auto full = static_cast<size_t>(engine_->options().chunk) + 1;
  while (!ids.empty()) {
    const size_t count = std::min(ids.size(), full - buffer_.size());
    for (const TokenId id : ids.first(count)) {
      require(id >= 0 && id < vocab, "score: token ids must be 0 to ", vocab - 1, ", got ", id);
    }
    buffer_.insert(buffer_.end(), ids.begin(), ids.begin() + static_cast<int64_t>(count));
    ids = ids.subspan(count);
    if (buffer_.size() == full) score(engine_->options().chunk);
  }
}

void Scorer::finish() {
  if (buffer_.size() >= 2) score(static_cast<int64_t>(buffer_.size()) - 1);
}

// Feeds the first `count` buffered ids, each of which has its successor behind it.
void Scorer::score(int64_t count) {
  labels_.assign(buffer_.begin() + 1, buffer_.begin() + 1 + count);
  const Input input{{buffer_.data(), static_cast<size_t>(count)}, slot_.index()};
  const auto rows = [&](const Piece& piece, const Tensor&, const Tensor& logits) {
    Context ctx = engine_->host_context();
    const Tensor nll = cross_entropy(ctx, logits, Tensor(labels_.data() + piece.first, DType::i64, {piece.count}));
    for (int64_t i = 0; i < piece.count; ++i) {
      const float value = nll.ptr<float>()[i];
      total_ += value;
      if (nll_) nll_(value);
    }
    tokens_ += piece.count;
  };
  engine_->all_logits({&input, 1}, {.rows = rows, .residual = {}});
  buffer_.erase(buffer_.begin(), buffer_.begin() + count);
}

}  // namespace elapid
