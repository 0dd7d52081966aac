#include "elapid/infer/sampler.h"

#include "elapid/core/error.h"
#include "elapid/core/random.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace elapid {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A total order: the result does not depend on how candidates are arranged.
constexpr auto kBetter = [](const auto& a, const auto& b) {
  return a.score > b.score || (a.score == b.score && a.id < b.id);
};

template <class Candidates>
double total_weight(const Candidates& candidates) {
  double total = 0;
  for (const auto& c : candidates) total += c.weight;
  return total;
}

}  // namespace

void SamplingParams::validate() const {
  require(temperature >= 0 && temperature < kInfinity, "sampling: temperature must be at least 0 and finite, got ",
          temperature);
  require(top_k >= 0, "sampling: top-k must be at least 0, got ", top_k);
  require(top_p >= 0 && top_p <= 1, "sampling: top-p must be from 0 to 1, got ", top_p);
  require(min_p >= 0 && min_p <= 1, "sampling: min-p must be from 0 to 1, got ", min_p);
  require(repetition_penalty > 0 && repetition_penalty < kInfinity,
          "sampling: repetition penalty must be positive and finite, got ", repetition_penalty);
}

double log_normalizer(std::span<const float> logits, const char* what) {
  const double top = *std::ranges::max_element(logits);
  require(std::isfinite(top), what, ": logits must be finite, got ", top);
  double total = 0;
  for (const float logit : logits) total += std::exp(double{logit} - top);
  // A NaN is never the maximum unless it comes first, but it is in the sum.
  require(!std::isnan(total), what, ": logits must be finite, got ", total);
  return top + std::log(total);
}

Sampler::Sampler(int64_t vocab) { candidates_.resize(static_cast<size_t>(vocab)); }

TokenId Sampler::sample(std::span<const float> logits, const SamplingParams& params, std::span<const uint8_t> seen,
                        int64_t limit, Draw draw) {
  require(limit >= 1 && static_cast<size_t>(limit) <= std::min(logits.size(), candidates_.size()),
          "sampler: the limit must be 1 to ", std::min(logits.size(), candidates_.size()), ", got ", limit);
  const bool penalize = params.repetition_penalty != 1;
  require(!penalize || seen.size() >= static_cast<size_t>(limit), "sampler: a repetition penalty needs ", limit,
          " marks of seen ids, got ", seen.size());

  std::span<Candidate> kept(candidates_.data(), static_cast<size_t>(limit));
  const Candidate* best = kept.data();
  for (size_t i = 0; i < kept.size(); ++i) {
    require(logits[i] <= std::numeric_limits<float>::max(), "sampler: logits must be finite, got ", logits[i],
            " for id ", i);
    double score = logits[i];
    if (penalize && seen[i] != 0) {
      score = score < 0 ? score * params.repetition_penalty : score / params.repetition_penalty;
      require(score < kInfinity, "sampling: repetition penalty must leave logits finite, got ",
              params.repetition_penalty);
    }
    kept[i] = {score, 0, static_cast<TokenId>(i)};
    if (kBetter(kept[i], *best)) best = &kept[i];
  }
  require(best->score > -kInfinity, "sampler: a logit must be finite, got all -inf");
  if (params.temperature == 0) return best->id;

  const double highest = best->score;
  if (params.top_k > 0 && params.top_k < limit) {
    std::nth_element(kept.begin(), kept.begin() + params.top_k, kept.end(), kBetter);
    kept = kept.first(static_cast<size_t>(params.top_k));
  }
  for (Candidate& c : kept) c.weight = std::exp((c.score - highest) / params.temperature);
  if (params.top_p < 1) kept = heaviest(kept, params.top_p * total_weight(kept));
  if (params.min_p > 0) {
    // The most likely one has weight 1.
    const auto end =
        std::partition(kept.begin(), kept.end(), [&](const Candidate& c) { return c.weight >= params.min_p; });
    kept = kept.first(static_cast<size_t>(end - kept.begin()));
  }
  const double mass = total_weight(kept) *
                      uniform(params.seed, static_cast<uint64_t>(draw.position), static_cast<uint64_t>(draw.stream));
  // The draw walks the candidates from the most likely one on until it has passed `mass`: it ends at the last one that
  // reaching that mass takes.
  return heaviest(kept, mass).back().id;
}

// The fewest candidates, best first, whose weights sum to at least `mass`; at least one. Rearranges `from`.
std::span<Sampler::Candidate> Sampler::heaviest(std::span<Candidate> from, double mass) {
  // Sorting a whole vocabulary costs milliseconds. Candidates lighter than this weigh less than the rest of the mass
  // together, so the wanted ones lie among the others.
  const double lightest = (total_weight(from) - mass) / static_cast<double>(from.size());
  const auto end = std::partition(from.begin(), from.end(),
                                  [&](const Candidate& c) { return c.weight >= lightest && c.weight > 0; });
  from = from.first(static_cast<size_t>(end - from.begin()));
  std::sort(from.begin(), from.end(), kBetter);
  double sum = 0;
  for (size_t i = 0; i < from.size(); ++i) {
    sum += from[i].weight;
    if (sum >= mass) return from.first(i + 1);
  }
  return from;
}

}  // namespace elapid
