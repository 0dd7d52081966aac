#pragma once

// How likely continuations are after their contexts: what multiple-choice and cloze tasks ask for.

#include "elapid/infer/engine.h"

#include <functional>
#include <span>
#include <vector>

namespace elapid {

struct Query {
  std::vector<TokenId> context;       // at least one id
  std::vector<TokenId> continuation;  // at least one id
};

struct Likelihood {
  double log_likelihood = 0;  // of the continuation, nats
  bool greedy = true;         // every id of it is the likeliest at its place; of equals, the smallest id
};

// One for each query. Contexts that several queries share are computed once and their state forked, as far as that
// changes no bit: what comes out does not depend on which queries share a call. Queries run in ragged batches over the
// engine's free slots, at least two. progress(queries done) may be empty.
std::vector<Likelihood> log_likelihoods(Engine& engine, std::span<const Query> queries,
                                        const std::function<void(int64_t)>& progress = {});

}  // namespace elapid
