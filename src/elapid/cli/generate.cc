#include "elapid/infer/generate.h"

#include "elapid/cli/command.h"
#include "elapid/cli/input.h"
#include "elapid/cli/model_options.h"
#include "elapid/cli/output.h"
#include "elapid/cli/sampling_options.h"
#include "elapid/io/file.h"
#include "elapid/text/stream_decoder.h"
#include "elapid/text/unicode.h"

#include <algorithm>
#include <optional>
#include <unistd.h>

namespace elapid::cli {
namespace {

constexpr int64_t kMostSequences = 4096;

struct Options {
  ModelOptions model;
  SamplingOptions sampling;
  std::optional<std::string> prompt, prompt_file, prompt_ids;
  int64_t sequences = 1, chunk = EngineOptions{}.chunk;
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
  if (!o.save_state) return;
  if (o.sequences > 1) {
    throw UsageError(concat("--save-state: must go with one sequence, got --num-return ", o.sequences));
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

OrderedJson json_of(const Generation& result, size_t s, const std::string& text) {
  const Generation::Sequence& sequence = result.sequences[s];
  return {{"prompt_tokens", result.prompt_tokens},
          {"new_tokens", sequence.ids.size()},
          {"text", text},
          {"ids", sequence.ids},
          {"finish_reason", sequence.reason == FinishReason::stop ? "stop" : "length"},
          {"prefill_tok_s", rate(result.prompt_tokens, result.prefill_seconds)},
          {"decode_tok_s", rate(result.decoded_tokens, result.decode_seconds)}};
}

void print_objects(const Generation& result, const std::vector<Transcript>& transcripts) {
  if (transcripts.size() == 1) return print_json(json_of(result, 0, transcripts[0].text()));
  OrderedJson all = OrderedJson::array();
  for (size_t s = 0; s < transcripts.size(); ++s) all.push_back(json_of(result, s, transcripts[s].text()));
  print_json(OrderedJson{{"sequences", std::move(all)}});
}

// Several sequences cannot stream side by side: one after another, a line between them.
void print_all(const Generation& result, const std::vector<Transcript>& transcripts, bool ids_only) {
  std::string out;
  for (size_t s = 0; s < transcripts.size(); ++s) {
    if (ids_only) {
      out += join(result.sequences[s].ids) + "\n";
    } else {
      out += concat(s == 0 ? "" : "---\n", transcripts[s].text(), "\n");
    }
  }
  print(out);
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
    prompt.ids = tokenizer->encode(prompt.text, {.add_special_tokens = !o.no_special && !o.load_state});
  }
  const auto threads = o.model.start_threads();
  const auto model = o.model.load(folder, *threads);
  Engine engine(*model, *threads, {.slots = o.sequences, .chunk = o.chunk, .batch = std::max(o.chunk, o.sequences)});

  GenerateOptions options = o.sampling.for_model(config, model->config());
  options.sequences = o.sequences;
  options.vocab_limit = drawable_ids(model->config(), tokenizer ? &*tokenizer : nullptr);
  options.initial = std::move(state);
  options.keep_state = o.save_state.has_value();

  const bool stream = o.sequences == 1 && !o.json;
  std::vector<Transcript> transcripts;
  for (int64_t s = 0; s < o.sequences; ++s) transcripts.emplace_back(tokenizer ? &*tokenizer : nullptr, o, stream);
  const Generation result = generate(engine, prompt.ids, options, [&](int64_t sequence, TokenId id) {
    const bool end = std::find(options.stop_ids.begin(), options.stop_ids.end(), id) != options.stop_ids.end();
    return transcripts[static_cast<size_t>(sequence)].push(id, end);
  });
  for (Transcript& transcript : transcripts) transcript.finish();
  if (o.save_state) result.sequences[0].state->write(*o.save_state);
  if (o.json) return print_objects(result, transcripts);
  if (!stream) print_all(result, transcripts, o.prompt_ids.has_value());
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
  flags.text("--save-state", "F", o->save_state,
             "Write the sequence's state to F after the last token; not with --num-return");
  flags.text("--load-state", "F", o->load_state,
             "Continue the sequence of this state; the prompt, which may then be empty, comes after it, without "
             "special tokens");
  flags.flag("--no-special", o->no_special, "Leave out what the tokenizer adds, such as a leading bos");
  add_chunk(flags, o->chunk);
  flags.flag("--json", o->json, "Print one JSON object");
  add_sampling_footer(flags);
  return [o] { run(*o); };
}

}  // namespace elapid::cli
