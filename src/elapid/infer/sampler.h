#pragma once

// Logits → token.

#include "elapid/core/batch.h"

#include <cstdint>
#include <span>
#include <vector>

namespace elapid {

// Applied in this order: repetition penalty, temperature, top-k, top-p, min-p.
struct SamplingParams {
  double temperature = 0.8;       // 0: greedy
  int64_t top_k = 0;              // keep this many; 0: all
  double top_p = 0.95;            // keep the smallest set of most likely tokens with at least this mass; 1: all
  double min_p = 0;               // drop tokens less likely than this share of the most likely one
  double repetition_penalty = 1;  // logits of tokens seen so far: positive ones divided, negative ones multiplied
  uint64_t seed = 0;

  // An Error that names the parameter, its range and its value.
  void validate() const;
};

// log Σ exp(logits), summed in double: a logit less this is its id's log-likelihood. An Error when the largest logit is
// not finite or any is NaN; `what` names who asks.
double log_normalizer(std::span<const float> logits, const char* what);

// Draws with a counter-based generator: what comes out depends on the logits and (seed, stream, position) alone. Ties
// go to the smaller id. Allocates in the constructor only.
class Sampler {
 public:
  explicit Sampler(int64_t vocab);

  struct Draw {
    int64_t stream = 0;    // tells the sequences of one request apart
    int64_t position = 0;  // of the drawn token in its sequence
  };
  // `seen[id]` is non-zero for every id of the sequence so far (empty when repetition_penalty is 1). Ids from `limit`
  // on are never drawn (rows of a padded vocabulary). An Error when a logit is NaN or +∞, or all are −∞.
  TokenId sample(std::span<const float> logits, const SamplingParams& params, std::span<const uint8_t> seen,
                 int64_t limit, Draw draw);

 private:
  struct Candidate {
    double score, weight;
    TokenId id;
  };
  std::span<Candidate> heaviest(std::span<Candidate> from, double mass);

  std::vector<Candidate> candidates_;
};

}  // namespace elapid
