#include "elapid/cli/sampling_options.h"

#include "elapid/cli/output.h"

namespace elapid::cli {

void SamplingOptions::add(Flags& flags) {
  flags.integer("--max-new-tokens", max_new_tokens, {}, "Generate at most N tokens (default: 256)");
  flags.real("--temperature", temperature, {}, "0 is greedy (default: 0.8)");
  flags.integer("--top-k", top_k, {}, "Draw from the K most likely tokens; 0: from all (default: 0)");
  flags.real("--top-p", top_p, {.max = 1},
             "Draw from the smallest set of most likely tokens with this probability together (default: 0.95)");
  flags.real("--min-p", min_p, {.max = 1}, "Drop tokens below this share of the likeliest one's probability");
  flags.real("--repetition-penalty", repetition_penalty, {.min_excluded = true},
             "Divide positive logits of tokens seen before, multiply negative ones (default: 1)");
  flags.option(
      "--seed", "N", [this](const std::string& text) { seed = parse_unsigned("--seed", text); },
      "Same seed, same text, for any number of threads and, in f32, of sequences (default: 0)");
  flags.repeatable("--stop", "STR", stop, "End before this text; may be given several times");
  flags.flag("--greedy", greedy, "Always take the most likely token");
  flags.flag("--ignore-eos", ignore_eos, "Go on after the end of the text");
}

void SamplingOptions::check() const {
  for (const std::string& each : stop) {
    if (each.empty()) throw UsageError("--stop: must not be empty, got 0 bytes");
  }
}

GenerateOptions SamplingOptions::for_model(const GenerationConfig& config, const ModelConfig& model,
                                           const Tokenizer* tokenizer) const {
  GenerateOptions options;
  SamplingParams& params = options.sampling;
  const auto choose = [](auto& value, const auto& flag, const auto& file) {
    value = flag.value_or(file.value_or(value));
  };
  choose(params.temperature, temperature, config.temperature);
  choose(params.top_k, top_k, config.top_k);
  choose(params.top_p, top_p, config.top_p);
  choose(params.min_p, min_p, config.min_p);
  choose(params.repetition_penalty, repetition_penalty, config.repetition_penalty);
  params.seed = seed;
  const bool asks_to_sample = temperature || top_k || top_p || min_p;
  if (greedy || (!config.do_sample.value_or(true) && !asks_to_sample)) params.temperature = 0;

  choose(options.max_new_tokens, max_new_tokens, config.max_new_tokens);
  if (!ignore_eos) {
    for (const int64_t id : config.eos_ids.value_or(model.eos_ids))
      options.stop_ids.push_back(static_cast<TokenId>(id));
    // Raw state-spaces folders say nothing about ids.
    if (options.stop_ids.empty() && tokenizer != nullptr) {
      if (const auto id = tokenizer->end_of_text()) options.stop_ids.push_back(*id);
    }
  }
  return options;
}

void add_sampling_footer(Flags& flags) {
  flags.footer(
      "Defaults come from the model's generation_config.json where it has them; with do_sample false there, generation "
      "is\n"
      "greedy unless a sampling flag is given. Order: repetition penalty, temperature, top-k, top-p, min-p.");
}

double rate(int64_t tokens, double seconds) { return seconds > 0 ? static_cast<double>(tokens) / seconds : 0; }

void note_speed(const Generation& result) {
  note(concat("prefill ", result.prompt_tokens, " tokens, ",
              format("%.0f", rate(result.prompt_tokens, result.prefill_seconds)), " tok/s; decode ",
              result.decoded_tokens, " tokens, ", format("%.0f", rate(result.decoded_tokens, result.decode_seconds)),
              " tok/s"));
}

}  // namespace elapid::cli
