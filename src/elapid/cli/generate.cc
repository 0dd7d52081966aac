#include "elapid/infer/generate.h"

#include "elapid/cli/command.h"
#include "elapid/cli/input.h"
#include "elapid/cli/model_options.h"
#include "elapid/cli/output.h"
#include "elapid/cli/sampling_options.h"
#include "elapid/infer/beam.h"
#include "elapid/io/file.h"
#include "elapid/text/stream_decoder.h"
#include "elapid/text/unicode.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <optional>
#include <unistd.h>

namespace elapid::cli {
namespace {

constexpr int64_t kMostSequences = 4096;

struct Options {
  ModelOptions model;
  SamplingOptions sampling;
  std::optional<std::string> prompt, prompt_file, prompt_ids;
  int64_t sequences = 1;
  RunOptions run;
  std::optional<int64_t> best_of, beams;
  bool no_special = false, json = false;
  std::optional<std::string> save_state, load_state;
};

// Text or ids; neither when a state's pending ids are all there is to continue.
struct Prompt {
  std::string text;
  std::vector<TokenId> ids;
};

void check_combinations(const Options& o) {
  const int sources = int{o.prompt.has_value()} + int{o.prompt_file.has_value()} + int{o.prompt_ids.has_value()};
  if (sources > 1) {
    throw UsageError(concat("prompt: must come from one of PROMPT, --prompt-file and --prompt-ids, got ", sources));
  }
  o.sampling.check();
  if (o.best_of && o.beams) throw UsageError("--beams: must not go with --best-of, got both");
  if (o.best_of.value_or(o.sequences) < o.sequences || o.beams.value_or(o.sequences) < o.sequences) {
    throw UsageError(concat("--num-return: must be at most ", o.beams ? "--beams " : "--best-of ",
                            o.beams ? *o.beams : *o.best_of, ", got ", o.sequences));
  }
  if (o.beams && (o.sampling.draws() || !o.sampling.stop.empty() || o.load_state || o.save_state)) {
    throw UsageError("--beams: must not go with sampling flags, --stop, --load-state or --save-state, got one of them");
  }
  if (!o.save_state) return;
  if (o.sequences > 1 || o.best_of) {
    throw UsageError(concat("--save-state: must go with one sequence, got ", o.best_of ? "--best-of " : "--num-return ",
                            o.best_of.value_or(o.sequences)));
  }
  const auto folder = std::filesystem::absolute(*o.save_state).parent_path();
  require(is_folder(folder), "--save-state: must name a file in an existing folder, got ", *o.save_state);
}

Prompt read_prompt(const Options& o, const std::optional<State>& state) {
  const bool optional = state && !state->pending().empty();
  Prompt prompt;
  if (o.prompt_ids) {
    try {
      prompt.ids = parse_ids(*o.prompt_ids, "--prompt-ids");
    } catch (const Error& error) {
      throw UsageError(error.what());
    }
    if (prompt.ids.empty() && !optional) throw UsageError("--prompt-ids: must hold at least one id, got none");
    return prompt;
  }
  if (o.prompt) {
    prompt.text = *o.prompt;
  } else if (o.prompt_file) {
    prompt.text = read_text(o.prompt_file);
  } else if (isatty(STDIN_FILENO) != 1) {
    prompt.text = read_text({});
  } else if (!optional) {
    note("reading the prompt from the terminal; end it with Ctrl-D");
    prompt.text = read_text({});
  }
  if (prompt.text.empty() && !optional) throw UsageError("prompt: must not be empty, got 0 bytes");
  const size_t valid = unicode::valid_utf8_prefix(prompt.text);
  require(valid == prompt.text.size(), "prompt: must be valid UTF-8, got an invalid byte at offset ", valid);
  return prompt;
}

// What becomes of the ids of one sequence: text where there is a tokenizer, streamed when asked.
class Transcript {
 public:
  Transcript(const Tokenizer* tokenizer, const Options& o, bool stream) : ids_only_(o.prompt_ids), stream_(stream) {
    if (tokenizer != nullptr) decoder_.emplace(*tokenizer, o.sampling.stop, /*continues=*/true);
  }

  // False once a stop string is complete. An end-of-sequence id has no text.
  bool push(TokenId id, bool end) {
    if (ids_only_) say(concat(count_++ == 0 ? "" : " ", id));
    if (!decoder_ || end) return true;
    add(decoder_->push(id));
    return !decoder_->stopped();
  }
  void finish() {
    if (decoder_) add(decoder_->finish());
    say("\n");
  }
  [[nodiscard]] const std::string& text() const { return text_; }

 private:
  void add(const std::string& text) {
    text_ += text;
    if (!ids_only_ && !text.empty()) say(text);
  }
  void say(std::string_view text) const {
    if (stream_) print(text);
  }

  std::optional<StreamDecoder> decoder_;
  std::string text_;
  bool ids_only_, stream_;
  int64_t count_ = 0;
};

// What is printed of a sequence.
struct Answer {
  Generation::Sequence sequence;
  std::string text;
};

OrderedJson json_of(const Generation& result, const Answer& answer, bool rated) {
  const Generation::Sequence& sequence = answer.sequence;
  OrderedJson json = {{"prompt_tokens", result.prompt_tokens},
                      {"new_tokens", sequence.ids.size()},
                      {"text", answer.text},
                      {"ids", sequence.ids},
                      {"finish_reason", sequence.reason == FinishReason::stop ? "stop" : "length"},
                      {"prefill_tok_s", rate(result.prompt_tokens, result.prefill_seconds)},
                      {"decode_tok_s", rate(result.decoded_tokens, result.decode_seconds)}};
  if (rated) json["log_likelihood"] = sequence.log_likelihood;
  return json;
}

void print_objects(const Generation& result, const std::vector<Answer>& answers, bool rated) {
  if (answers.size() == 1) return print_json(json_of(result, answers[0], rated));
  OrderedJson all = OrderedJson::array();
  for (const Answer& answer : answers) all.push_back(json_of(result, answer, rated));
  print_json(OrderedJson{{"sequences", std::move(all)}});
}

// Several sequences cannot stream side by side: one after another, a line between them.
void print_all(const std::vector<Answer>& answers, bool ids_only) {
  std::string out;
  for (const Answer& answer : answers) {
    if (ids_only) {
      out += join(answer.sequence.ids) + "\n";
    } else {
      out += concat(out.empty() ? "" : "---\n", answer.text, "\n");
    }
  }
  print(out);
}

// The hypotheses as what generate() returns. Searching reads the prompt and goes on in one.
Generation search(Engine& engine, const std::vector<TokenId>& prompt, int64_t beams, const GenerateOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  Generation result;
  std::vector<Hypothesis> found = beam_search(engine, prompt,
                                              {.beams = beams,
                                               .max_new_tokens = options.max_new_tokens,
                                               .stop_ids = options.stop_ids,
                                               .vocab_limit = options.vocab_limit});
  for (Hypothesis& h : found) {
    Generation::Sequence& sequence = result.sequences.emplace_back();
    sequence.ids = std::move(h.ids);
    sequence.reason = h.finished ? FinishReason::stop : FinishReason::length;
    sequence.log_likelihood = h.log_likelihood;
    result.decoded_tokens += std::ssize(sequence.ids);
  }
  result.prompt_tokens = std::ssize(prompt);
  result.decode_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

void run(const Options& o) {
  check_combinations(o);
  std::optional<State> state;
  if (o.load_state) state = State::read(*o.load_state);
  Prompt prompt = read_prompt(o, state);

  const std::filesystem::path folder = o.model.folder();
  const GenerationConfig config = load_generation_config(folder);
  // Ids need no tokenizer, but where there is one it knows which ids exist.
  std::optional<Tokenizer> tokenizer;
  if (!o.prompt_ids || !o.sampling.stop.empty() || o.model.tokenizer || Tokenizer::find(folder)) {
    tokenizer.emplace(o.model.load_tokenizer(folder));
  }
  if (!prompt.text.empty()) {
    // In the middle of a sequence there is no beginning to mark.
    prompt.ids =
        tokenizer->encode(prompt.text, {.add_special_tokens = !o.no_special, .continues = o.load_state.has_value()});
  }
  const auto threads = o.model.start_threads();
  const auto model = o.model.load(folder, *threads);
  // A search forks every hypothesis before it drops the old ones.
  const int64_t sequences = o.beams ? 2 * *o.beams : o.best_of.value_or(o.sequences);
  Engine engine(
      *model, *threads,
      {.slots = sequences, .chunk = o.run.chunk, .batch = std::max(o.run.chunk, sequences), .state = o.run.state});

  GenerateOptions options = o.sampling.for_model(config, model->config(), tokenizer ? &*tokenizer : nullptr);
  options.sequences = sequences;
  options.vocab_limit = drawable_ids(model->config(), tokenizer ? &*tokenizer : nullptr);
  options.initial = std::move(state);
  options.keep_state = o.save_state.has_value();
  options.log_likelihoods = o.best_of.has_value();

  const bool stream = sequences == 1 && !o.json;
  std::vector<Transcript> transcripts;
  for (int64_t s = 0; s < sequences; ++s) transcripts.emplace_back(tokenizer ? &*tokenizer : nullptr, o, stream);
  const OnToken on_token = [&](int64_t sequence, TokenId id) {
    const bool end = std::find(options.stop_ids.begin(), options.stop_ids.end(), id) != options.stop_ids.end();
    return transcripts[static_cast<size_t>(sequence)].push(id, end);
  };
  Generation result;
  if (o.beams) {
    result = search(engine, prompt.ids, *o.beams, options);
    for (size_t s = 0; s < result.sequences.size(); ++s) {
      for (const TokenId id : result.sequences[s].ids) on_token(static_cast<int64_t>(s), id);
    }
  } else {
    result = generate(engine, prompt.ids, options, on_token);
  }
  std::vector<Answer> answers;
  for (size_t s = 0; s < result.sequences.size(); ++s) {
    transcripts[s].finish();
    answers.push_back({std::move(result.sequences[s]), transcripts[s].text()});
  }
  if (o.best_of) {
    const auto rating = [](const Answer& answer) {
      return answer.sequence.log_likelihood / static_cast<double>(std::max(answer.sequence.ids.size(), size_t{1}));
    };
    std::ranges::stable_sort(answers, std::greater(), rating);
  }
  answers.resize(std::min(answers.size(), static_cast<size_t>(o.sequences)));
  if (o.save_state) answers[0].sequence.state->write(*o.save_state);
  if (o.json) return print_objects(result, answers, o.best_of || o.beams);
  if (!stream) print_all(answers, o.prompt_ids.has_value());
  note_speed(result);
}

}  // namespace

Run prepare_generate(Flags& flags) {
  const auto o = std::make_shared<Options>();
  flags.positional(
      "PROMPT", [o](const std::string& text) { o->prompt = text; },
      "Text to continue; without it, --prompt-file, --prompt-ids or standard input. After -- it may begin "
      "with a dash");
  o->model.add(flags);
  o->model.add_tokenizer(flags);
  flags.text("--prompt-file", "F", o->prompt_file, "Read the prompt from F, every byte of it");
  flags.text("--prompt-ids", "IDS", o->prompt_ids, "Token ids, as in \"1 2 3\": needs no tokenizer, prints ids");
  o->sampling.add(flags);
  flags.integer("--num-return", o->sequences, {1, kMostSequences},
                "Continue the prompt N times; printed one after another with lines of --- between");
  flags.integer("--best-of", o->best_of, {1, kMostSequences},
                "Continue the prompt N times and print what the model itself finds likeliest per token");
  flags.integer("--beams", o->beams, {1, kMostSequences / 2},
                "Search with N beams for the likeliest text instead of drawing one");
  flags.text("--save-state", "F", o->save_state,
             "Write the sequence's state to F after the last token; not with --num-return");
  flags.text("--load-state", "F", o->load_state,
             "Continue the sequence of this state; the prompt, which may then be empty, comes after it, without "
             "special tokens and without the space that some tokenizers put in front of a text");
  flags.flag("--no-special", o->no_special, "Leave out what the tokenizer adds, such as a leading bos");
  o->run.add(flags);
  flags.flag("--json", o->json, "Print one JSON object");
  add_sampling_footer(flags);
  return [o] { run(*o); };
}

}  // namespace elapid::cli
