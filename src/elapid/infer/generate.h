#pragma once

// One-call generation on an Engine, in token ids. Text is the caller's: see StreamDecoder.

#include "elapid/infer/engine.h"
#include "elapid/infer/sampler.h"

#include <functional>
#include <optional>
#include <span>
#include <vector>

namespace elapid {

struct GenerateOptions {
  SamplingParams sampling;
  int64_t max_new_tokens = 256;  // 0: only feed the prompt
  int64_t sequences = 1;  // continuations of the same prompt, by forking its state; the engine needs as many slots
  std::vector<TokenId> stop_ids{};  // end of sequence; part of the result, not fed to the model
  int64_t vocab_limit = 0;          // ids from here on are never drawn (0: the model's vocabulary)
  std::optional<State> initial{};   // continue this state: its pending ids, then the prompt
  bool keep_state = false;          // fill Sequence::state
  bool log_likelihoods = false;     // fill Sequence::log_likelihood
};

enum class FinishReason : uint8_t { stop, length };

struct Generation {
  struct Sequence {
    std::vector<TokenId> ids;  // the new ones
    FinishReason reason = FinishReason::length;
    double log_likelihood = 0;   // of the new ids as the model has it, before penalty, temperature and filters
    std::optional<State> state;  // of everything before the last id, which is pending in it
  };
  std::vector<Sequence> sequences;
  int64_t prompt_tokens = 0;  // fed by this call
  double prefill_seconds = 0, decode_seconds = 0;
  int64_t decode_steps = 0;    // forward calls after the prompt
  int64_t decoded_tokens = 0;  // that those calls produced, over all sequences
};

// Called for every new token in order; false ends that sequence with FinishReason::stop (a stop string has appeared).
using OnToken = std::function<bool(int64_t sequence, TokenId id)>;

// Sequence s draws with stream s at the positions that its tokens have counted from the state's first one on, so a
// generation that was saved and continued is the one that was not interrupted. An Error when prompt and pending ids are
// both empty, an id lies outside the vocabulary, or an option is out of range.
Generation generate(Engine& engine, std::span<const TokenId> prompt, const GenerateOptions& options,
                    const OnToken& on_token = {});

}  // namespace elapid
