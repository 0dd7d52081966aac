#pragma once

// Negative log-likelihood of a token stream, at memory that does not depend on its length.

#include "elapid/infer/engine.h"

#include <functional>
#include <span>
#include <vector>

namespace elapid {

class Scorer {
 public:
  // Takes one slot of the engine. nll(value) is called for every token after the first, in order; may be empty.
  explicit Scorer(Engine& engine, std::function<void(float)> nll = {});

  // Ids that follow those of earlier calls.
  void push(std::span<const TokenId> ids);
  // Scores what is still buffered.
  void finish();

  [[nodiscard]] int64_t tokens() const { return tokens_; }  // scored so far: fed ids less the first
  [[nodiscard]] double total() const { return total_; }     // sum of the scored tokens' nll, nats

 private:
  void score(int64_t count);

  Engine* engine_;
  std::function<void(float)> nll_;
  Slot slot_;
  std::vector<TokenId> buffer_;  // not fed yet; the last one's successor is unknown
  std::vector<int64_t> labels_;
  int64_t tokens_ = 0;
  double total_ = 0;
};

}  // namespace elapid
