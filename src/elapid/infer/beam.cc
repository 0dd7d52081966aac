#include "elapid/infer/beam.h"

#include "elapid/core/error.h"
#include "elapid/infer/sampler.h"

#include <algorithm>
#include <cmath>
#include <tuple>

namespace elapid {
namespace {

struct Beam {
  Slot slot;  // has consumed the prompt and all of the ids but the last
  std::vector<TokenId> ids;
  double log_likelihood = 0;
};

struct Candidate {
  size_t beam;
  TokenId id;
  double log_likelihood;
};

// A total order: ties go to the earlier beam, then to the smaller id.
bool better(const Candidate& a, const Candidate& b) {
  return std::tuple(-a.log_likelihood, a.beam, a.id) < std::tuple(-b.log_likelihood, b.beam, b.id);
}

class Search {
 public:
  Search(Engine& engine, const BeamOptions& options) : engine_(engine), options_(options) {
    const int64_t vocab = engine.model().config().vocab;
    require(options.beams >= 1, "beam search: beams must be at least 1, got ", options.beams);
    require(options.max_new_tokens >= 1, "beam search: max new tokens must be at least 1, got ",
            options.max_new_tokens);
    require(engine.states().available() >= 2 * options.beams, "beam search: the engine must have ", 2 * options.beams,
            " free slots, got ", engine.states().available());
    require(options.vocab_limit >= 0 && options.vocab_limit <= vocab, "beam search: the limit must be 0 to ", vocab,
            ", got ", options.vocab_limit);
    require(std::isfinite(options.length_penalty), "beam search: the length penalty must be finite, got ",
            options.length_penalty);
    limit_ = options.vocab_limit == 0 ? vocab : options.vocab_limit;
  }

  std::vector<Hypothesis> operator()(std::span<const TokenId> prompt) {
    require(!prompt.empty(), "beam search: the prompt must have ids, got none");
    Beam& first = beams_.emplace_back();
    first.slot = engine_.states().acquire();
    const Input input{prompt, first.slot.index()};
    Tensor logits = engine_.last_logits({&input, 1});
    for (int64_t step = 1;; ++step) {
      extend(logits);
      if (step == options_.max_new_tokens || beams_.empty() || is_decided()) break;
      std::vector<Input> inputs;
      for (const Beam& beam : beams_) inputs.push_back({{&beam.ids.back(), 1}, beam.slot.index()});
      logits = engine_.last_logits(inputs);
    }
    for (const Beam& beam : beams_) finish(beam.ids, beam.log_likelihood, false);
    return std::move(found_);
  }

 private:
  [[nodiscard]] bool ends(TokenId id) const {
    return std::find(options_.stop_ids.begin(), options_.stop_ids.end(), id) != options_.stop_ids.end();
  }
  [[nodiscard]] double score(double log_likelihood, size_t length) const {
    return log_likelihood / std::pow(static_cast<double>(length), options_.length_penalty);
  }
  [[nodiscard]] size_t width() const { return static_cast<size_t>(options_.beams); }

  void finish(std::vector<TokenId> ids, double log_likelihood, bool finished) {
    const double value = score(log_likelihood, ids.size());
    const auto place = std::find_if(found_.begin(), found_.end(), [&](const Hypothesis& h) { return h.score < value; });
    found_.insert(place, {std::move(ids), log_likelihood, value, finished});
    if (found_.size() > width()) found_.pop_back();
  }

  // Whether the best open hypothesis, were it to end now, would not be kept: likelihoods only fall from here.
  [[nodiscard]] bool is_decided() const {
    if (found_.size() < width()) return false;
    const Beam& best = beams_.front();
    const size_t length = options_.length_penalty > 0 ? static_cast<size_t>(options_.max_new_tokens) : best.ids.size();
    return found_.back().score >= score(best.log_likelihood, length);
  }

  void extend(const Tensor& logits) {
    // Twice as many as are kept: so many stay even if half of them end.
    std::vector<Candidate> candidates;
    for (size_t b = 0; b < beams_.size(); ++b) {
      const float* row = logits.row<float>(static_cast<int64_t>(b));
      const double base = beams_[b].log_likelihood - log_normalizer({row, static_cast<size_t>(limit_)}, "beam search");
      for (int64_t v = 0; v < limit_; ++v) candidates.push_back({b, static_cast<TokenId>(v), base + double{row[v]}});
    }
    const size_t kept = std::min(candidates.size(), (1 + options_.stop_ids.size()) * width());
    std::partial_sort(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(kept), candidates.end(),
                      better);
    std::vector<Candidate> open;
    for (size_t i = 0; i < kept && open.size() < width(); ++i) {
      const Candidate& c = candidates[i];
      if (!ends(c.id)) {
        open.push_back(c);
      } else if (i < width()) {
        std::vector<TokenId> ids = beams_[c.beam].ids;
        ids.push_back(c.id);
        finish(std::move(ids), c.log_likelihood, true);
      }
    }
    // A beam's last continuation takes its slot over, the others fork it.
    std::vector<size_t> uses(beams_.size(), 0);
    for (const Candidate& c : open) ++uses[c.beam];
    for (size_t b = 0; b < beams_.size(); ++b) {
      if (uses[b] == 0) beams_[b].slot = Slot();  // room for forks
    }
    std::vector<Beam> next;
    for (const Candidate& c : open) {
      Beam& parent = beams_[c.beam];
      Beam& child = next.emplace_back();
      child.slot = --uses[c.beam] == 0 ? std::move(parent.slot) : engine_.states().fork(parent.slot);
      child.ids = parent.ids;
      child.ids.push_back(c.id);
      child.log_likelihood = c.log_likelihood;
    }
    beams_ = std::move(next);
  }

  Engine& engine_;
  const BeamOptions& options_;
  int64_t limit_ = 0;
  std::vector<Beam> beams_;  // open, the likeliest first
  std::vector<Hypothesis> found_;
};

}  // namespace

std::vector<Hypothesis> beam_search(Engine& engine, std::span<const TokenId> prompt, const BeamOptions& options) {
  return Search(engine, options)(prompt);
}

}  // namespace elapid
