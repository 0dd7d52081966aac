#pragma once

// Flags that every command that generates shares, and what they mean for a model.

#include "elapid/cli/flags.h"
#include "elapid/cli/generation_config.h"
#include "elapid/infer/generate.h"
#include "elapid/model/config.h"
#include "elapid/text/tokenizer.h"

#include <optional>
#include <string>
#include <vector>

namespace elapid::cli {

struct SamplingOptions {
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k, max_new_tokens;
  uint64_t seed = 0;
  std::vector<std::string> stop;
  bool greedy = false, ignore_eos = false;

  void add(Flags& flags);
  // A UsageError for values that only together make no sense.
  void check() const;
  // Whether a flag says how to draw.
  [[nodiscard]] bool draws() const { return temperature || top_k || top_p || min_p || repetition_penalty; }
  // Flags, else the checkpoint's generation_config.json, else the defaults: sampling, length and stop ids. Where
  // neither that file nor config.json names an end of sequence, the tokenizer's, where there is one.
  [[nodiscard]] GenerateOptions for_model(const GenerationConfig& config, const ModelConfig& model,
                                          const Tokenizer* tokenizer) const;
};

// Ends the help of such a command.
void add_sampling_footer(Flags& flags);

double rate(int64_t tokens, double seconds);
// "prefill 5 tokens, 100 tok/s; decode 10 tokens, 50 tok/s", on standard error.
void note_speed(const Generation& result);

}  // namespace elapid::cli
