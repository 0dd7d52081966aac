#pragma once

// Beam search by forking states.

#include "elapid/infer/engine.h"

#include <span>
#include <vector>

namespace elapid {

struct BeamOptions {
  int64_t beams = 4;  // hypotheses kept at each step; the engine needs twice as many slots
  int64_t max_new_tokens = 256;
  double length_penalty = 1;        // a hypothesis scores log-likelihood / (its new ids) ^ length_penalty
  std::vector<TokenId> stop_ids{};  // end of sequence; part of the result
  int64_t vocab_limit = 0;          // ids from here on are never chosen (0: the model's vocabulary)
};

struct Hypothesis {
  std::vector<TokenId> ids;  // the new ones
  double log_likelihood = 0, score = 0;
  bool finished = false;  // by a stop id
};

// The best `beams` continuations found, the best first, as transformers' beam search with early_stopping = false finds
// them: each step extends every hypothesis by every id and keeps the likeliest; what ends is set aside; the search ends
// when no open hypothesis can still beat the worst finished one, or at max_new_tokens.
std::vector<Hypothesis> beam_search(Engine& engine, std::span<const TokenId> prompt, const BeamOptions& options);

}  // namespace elapid
