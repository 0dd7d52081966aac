#include "elapid/infer/generate.h"

#include "elapid/core/error.h"

#include <algorithm>
#include <chrono>

namespace elapid {
namespace {

// Ids are reserved up to here, so that decoding allocates nothing; a longer generation grows as vectors do.
constexpr int64_t kReservedIds = int64_t{1} << 16;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// One call of generate(): the sequences while they grow.
class Run {
 public:
  Run(Engine& engine, std::span<const TokenId> prompt, const GenerateOptions& options, const OnToken& on_token);
  Generation operator()();

 private:
  struct Live {
    Slot slot;
    std::vector<uint8_t> seen;  // for the repetition penalty
    bool done = false;
  };

  void prefill();
  void decode();
  void draw(int64_t sequence, std::span<const float> logits);
  void keep_states();

  Engine& engine_;
  const GenerateOptions& options_;
  const OnToken& on_token_;
  int64_t vocab_, limit_;
  std::vector<TokenId> known_;  // everything before the first new token: the state's ids, then what this call feeds
  int64_t fed_ = 0;             // of those, ids that the state has consumed already
  Sampler sampler_;
  std::vector<Live> live_;
  Generation result_;
};

Run::Run(Engine& engine, std::span<const TokenId> prompt, const GenerateOptions& options, const OnToken& on_token)
    : engine_(engine),
      options_(options),
      on_token_(on_token),
      vocab_(engine.model().config().vocab),
      limit_(options.vocab_limit == 0 ? vocab_ : options.vocab_limit),
      sampler_(vocab_) {
  options.sampling.validate();
  require(options.max_new_tokens >= 0, "generate: new tokens must be at least 0, got ", options.max_new_tokens);
  require(options.sequences >= 1, "generate: sequences must be at least 1, got ", options.sequences);
  require(limit_ >= 1 && limit_ <= vocab_, "generate: the vocabulary limit must be 0 to ", vocab_, ", got ", limit_);
  const int64_t available = engine.states().available();
  require(available >= options.sequences, "generate: the engine must have a free slot for each sequence (",
          options.sequences, "), got ", available);
  if (options.initial) {
    const State& state = *options.initial;
    known_.assign(state.tokens().begin(), state.tokens().end());
    fed_ = static_cast<int64_t>(known_.size());
    known_.insert(known_.end(), state.pending().begin(), state.pending().end());
  }
  known_.insert(known_.end(), prompt.begin(), prompt.end());
  result_.prompt_tokens = static_cast<int64_t>(known_.size()) - fed_;
  require(result_.prompt_tokens > 0, "generate: there must be a token to continue, got an empty prompt");
  for (const TokenId id : known_) {
    require(id >= 0 && id < vocab_, "generate: token ids must be 0 to ", vocab_ - 1, ", got ", id);
  }
}

Generation Run::operator()() {
  result_.sequences.resize(static_cast<size_t>(options_.sequences));
  live_.resize(static_cast<size_t>(options_.sequences));
  for (Generation::Sequence& s : result_.sequences) {
    s.ids.reserve(static_cast<size_t>(std::min(options_.max_new_tokens, kReservedIds)));
  }
  prefill();
  const auto start = std::chrono::steady_clock::now();
  decode();
  result_.decode_seconds = seconds_since(start);
  if (options_.keep_state) keep_states();
  return std::move(result_);
}

// Feeds the prompt once, hands its state to every sequence, and draws their first tokens from the same logits.
void Run::prefill() {
  const auto start = std::chrono::steady_clock::now();
  Slot& slot = live_[0].slot = engine_.states().acquire();
  if (options_.initial) engine_.states().load(slot, *options_.initial);
  const Input input{std::span<const TokenId>(known_).subspan(static_cast<size_t>(fed_)), slot.index()};
  const Tensor logits = engine_.last_logits({&input, 1});
  for (size_t s = 1; s < live_.size(); ++s) live_[s].slot = engine_.states().fork(slot);

  if (options_.sampling.repetition_penalty != 1) {
    std::vector<uint8_t> seen(static_cast<size_t>(vocab_), 0);
    for (const TokenId id : known_) seen[static_cast<size_t>(id)] = 1;
    for (Live& live : live_) live.seen = seen;
  }
  result_.prefill_seconds = seconds_since(start);
  for (int64_t s = 0; s < options_.sequences; ++s) {
    if (options_.max_new_tokens == 0) {
      live_[static_cast<size_t>(s)].done = true;
    } else {
      draw(s, {logits.row<float>(0), static_cast<size_t>(vocab_)});
    }
  }
}

// Feeds each live sequence's last token, all in one ragged batch, until none is live. Allocates nothing per step.
void Run::decode() {
  std::vector<Input> inputs;
  std::vector<int64_t> rows;  // the sequence of each input
  inputs.reserve(live_.size());
  rows.reserve(live_.size());
  for (;;) {
    inputs.clear();
    rows.clear();
    for (size_t s = 0; s < live_.size(); ++s) {
      if (live_[s].done) continue;
      inputs.push_back({{&result_.sequences[s].ids.back(), 1}, live_[s].slot.index()});
      rows.push_back(static_cast<int64_t>(s));
    }
    if (inputs.empty()) return;
    const Tensor logits = engine_.last_logits(inputs);
    ++result_.decode_steps;
    result_.decoded_tokens += static_cast<int64_t>(rows.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      draw(rows[i], {logits.row<float>(static_cast<int64_t>(i)), static_cast<size_t>(vocab_)});
    }
  }
}

void Run::draw(int64_t sequence, std::span<const float> logits) {
  Live& live = live_[static_cast<size_t>(sequence)];
  Generation::Sequence& result = result_.sequences[static_cast<size_t>(sequence)];
  const auto position = static_cast<int64_t>(known_.size() + result.ids.size());
  const TokenId id = sampler_.sample(logits, options_.sampling, live.seen, limit_, {sequence, position});
  result.ids.push_back(id);
  if (options_.log_likelihoods) {
    const std::span<const float> drawable = logits.first(static_cast<size_t>(limit_));
    result.log_likelihood += double{logits[static_cast<size_t>(id)]} - log_normalizer(drawable, "generate");
  }
  if (!live.seen.empty()) live.seen[static_cast<size_t>(id)] = 1;

  const bool go_on = !on_token_ || on_token_(sequence, id);
  const bool at_end = std::find(options_.stop_ids.begin(), options_.stop_ids.end(), id) != options_.stop_ids.end();
  if (!go_on || at_end) {
    result.reason = FinishReason::stop;
    live.done = true;
  } else if (static_cast<int64_t>(result.ids.size()) >= options_.max_new_tokens) {
    live.done = true;
  }
}

void Run::keep_states() {
  // After a state without its ids, those of the whole sequence are not known: a state has all of them or none.
  const bool all_known = !options_.initial || std::ssize(options_.initial->tokens()) == options_.initial->length();
  for (size_t s = 0; s < live_.size(); ++s) {
    Generation::Sequence& result = result_.sequences[s];
    std::vector<TokenId> tokens = known_;
    std::span<const TokenId> pending;
    if (!result.ids.empty()) {
      tokens.insert(tokens.end(), result.ids.begin(), result.ids.end() - 1);
      pending = {&result.ids.back(), 1};
    }
    if (!all_known) tokens.clear();
    result.state = engine_.states().save(live_[s].slot, tokens, pending);
  }
}

}  // namespace

Generation generate(Engine& engine, std::span<const TokenId> prompt, const GenerateOptions& options,
                    const OnToken& on_token) {
  return Run(engine, prompt, options, on_token)();
}

}  // namespace elapid
