#include "elapid/cli/command.h"
#include "elapid/cli/model_options.h"
#include "elapid/cli/output.h"
#include "elapid/cli/sampling_options.h"
#include "elapid/core/hash.h"
#include "elapid/infer/generate.h"
#include "elapid/io/file.h"
#include "elapid/io/json.h"
#include "elapid/text/stream_decoder.h"
#include "elapid/text/template.h"
#include "elapid/text/unicode.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <optional>
#include <unistd.h>

namespace elapid::cli {
namespace {

constexpr int64_t kMostNotes = int64_t{1} << 28;  // bytes of the file beside a saved state

struct Options {
  ModelOptions model;
  SamplingOptions sampling;
  std::optional<std::string> system;
  RunOptions run;
};

// --- The terminal

volatile std::sig_atomic_t interrupted = 0;

// Thrown where an answer has not begun.
struct Interrupted {};

// Ctrl-C ends an answer; reads return then rather than go on.
void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = [](int) { interrupted = 1; };
  sigaction(SIGINT, &action, nullptr);
}

class Lines {
 public:
  Lines() : terminal_(isatty(STDIN_FILENO) == 1) {}

  // The next line without its end; nothing at the end of input.
  std::optional<std::string> next() {
    if (terminal_) print("> ");
    for (;;) {
      if (const size_t end = held_.find('\n'); end != std::string::npos) {
        std::string line = held_.substr(0, end);
        held_.erase(0, end + 1);
        return line;
      }
      char piece[4096];
      const ssize_t count = ::read(STDIN_FILENO, piece, sizeof piece);
      if (count > 0) {
        held_.append(piece, static_cast<size_t>(count));
      } else if (count < 0 && errno == EINTR) {
        if (interrupted != 0 && terminal_) print("\n(/quit or Ctrl-D ends)\n> ");
        interrupted = 0;
      } else {
        require(count == 0, "standard input: must be readable, got ", std::strerror(errno));
        if (held_.empty()) return {};
        return std::exchange(held_, {});
      }
    }
  }
  [[nodiscard]] bool terminal() const { return terminal_; }

 private:
  bool terminal_;
  std::string held_;
};

// --- The conversation

// A place in a conversation that can be returned to: the state after some text.
struct Place {
  std::string text;            // as the template renders it, up to where the state has come; no state: nothing
  std::optional<State> state;  // with the last token of an answer pending
  std::string pending;         // that token's text

  [[nodiscard]] bool begins(std::string_view whole) const { return whole.starts_with(text); }
};

struct Conversation {
  OrderedJson messages = OrderedJson::array();
  Place now;
  Place question;  // before the last answer began: what a template that drops thoughts goes back to
};

class Chat {
 public:
  Chat(const Options& options, const Tokenizer& tokenizer, const ChatTemplate& chat_template, Engine& engine,
       GenerateOptions generation)
      : options_(options),
        tokenizer_(tokenizer),
        template_(chat_template),
        engine_(engine),
        generation_(std::move(generation)) {
    reset();
  }

  void reset() {
    talk_ = {};
    if (options_.system) talk_.messages.push_back({{"role", "system"}, {"content", *options_.system}});
  }

  // Answers, printing as it comes. What fails leaves the conversation as it was.
  void say(const std::string& text) {
    const size_t valid = unicode::valid_utf8_prefix(text);
    require(valid == text.size(), "chat: a turn must be valid UTF-8, got an invalid byte at offset ", valid);
    Conversation next = talk_;
    next.messages.push_back({{"role", "user"}, {"content", text}});
    answer(next);
    talk_ = std::move(next);
  }

  void save(const std::filesystem::path& path) const {
    require(talk_.now.state.has_value(), "chat /save: there must be an answer to save, got none");
    talk_.now.state->write(path);
    const OrderedJson notes = {{"messages", talk_.messages},
                               {"text", talk_.now.text},
                               {"pending", talk_.now.pending},
                               {"state", ids_of(*talk_.now.state)}};
    AtomicFile file(notes_of(path));
    file.write(notes.dump());
    file.commit();
  }

  void load(const std::filesystem::path& path) {
    Conversation loaded;
    loaded.now.state = State::read(path);
    const std::string name = notes_of(path).string();
    const OrderedJson notes = parse_ordered_json(read_text_file(name, kMostNotes), name);
    const auto part = [&](const char* key, bool array) -> const OrderedJson& {
      require(notes.is_object() && notes.contains(key) && (array ? notes[key].is_array() : notes[key].is_string()),
              name, ": must be what chat saved beside a state, got no ", key);
      return notes[key];
    };
    loaded.messages = part("messages", true);
    loaded.now.text = part("text", false).get<std::string>();
    loaded.now.pending = part("pending", false).get<std::string>();
    const std::string noted = part("state", false).get<std::string>(), found = ids_of(*loaded.now.state);
    require(noted == found, name, ": must be of the state beside it, whose ids have the hash ", found, ", got ", noted);
    {
      const Slot slot = engine_.states().acquire();  // whether it belongs to this model
      engine_.states().load(slot, *loaded.now.state);
    }
    talk_ = std::move(loaded);
  }

  // Keeps this place and returns its number.
  size_t fork() {
    forks_.push_back(talk_);
    return forks_.size();
  }
  void return_to(size_t number) {
    require(number >= 1 && number <= forks_.size(), "chat /fork: must name one of ", forks_.size(),
            " kept places, got ", number);
    talk_ = forks_[number - 1];
  }

 private:
  // Ties notes to the state that they tell of: a Hash of all its ids.
  static std::string ids_of(const State& state) {
    Hash hash;
    for (const std::span<const TokenId> ids : {state.tokens(), state.pending()}) {
      hash.add(ids.data(), ids.size_bytes());
    }
    return hash.hex();
  }

  // The conversation's text and messages, in a file beside the state.
  static std::filesystem::path notes_of(const std::filesystem::path& path) {
    std::filesystem::path notes = path;
    notes += ".chat.json";
    return notes;
  }

  // `continues`: after text that the state has read.
  [[nodiscard]] std::vector<TokenId> encode(std::string_view text, bool continues) const {
    return tokenizer_.encode(text, {.add_special_tokens = false, .control_tokens = true, .continues = continues});
  }

  [[nodiscard]] std::string render(const Conversation& talk, bool prompt) const {
    ChatInput input;
    input.messages = talk.messages;
    input.add_generation_prompt = prompt;
    return template_.render(input).text;
  }

  // The same state, nothing pending.
  State without_pending(const State& state) {
    const Slot slot = engine_.states().acquire();
    engine_.states().load(slot, state);
    return engine_.states().save(slot, state.tokens());
  }

  // The furthest place in the conversation that the text goes on from, with what is pending there only if that goes on,
  // too.
  Place place_before(const Conversation& talk, std::string_view whole) {
    Place place = talk.now;
    if (!place.state) return place;
    if (place.begins(whole)) {
      if (place.state->pending().empty() || whole.substr(place.text.size()).starts_with(place.pending)) return place;
      place.state = without_pending(*place.state);
      place.pending.clear();
      return place;
    }
    if (!std::exchange(told_, true)) note("the template changes what was said before: reading it again from there");
    return talk.question.state && talk.question.begins(whole) ? talk.question : Place();
  }

  void answer(Conversation& talk) {
    const std::string whole = render(talk, true), asked = render(talk, false);
    before_.reset();
    interrupted = 0;
    Place place = place_before(talk, whole);
    const size_t known = place.text.size() + place.pending.size();
    std::vector<TokenId> prompt = encode(std::string_view(whole).substr(known), known > 0);

    // In two steps where the prompt of the answer is tokens of its own, so that there is a place before it.
    talk.question = {};
    if (asked.size() > known && whole.starts_with(asked)) {
      const std::vector<TokenId> first = encode(std::string_view(asked).substr(known), known > 0);
      if (!first.empty() && first.size() < prompt.size() && std::equal(first.begin(), first.end(), prompt.begin())) {
        GenerateOptions feed = generation_;
        feed.max_new_tokens = 0;
        feed.keep_state = true;
        feed.initial = place.state;
        const Generation fed = generate(engine_, first, feed);
        talk.question = {asked, fed.sequences[0].state, {}};
        prompt.erase(prompt.begin(), prompt.begin() + std::ssize(first));
        place = talk.question;
        before_ = fed;
      }
    }
    stream(talk, place, whole, prompt);
  }

  void stream(Conversation& talk, const Place& place, const std::string& whole, const std::vector<TokenId>& prompt) {
    GenerateOptions options = generation_;
    options.keep_state = true;
    options.initial = place.state;
    StreamDecoder decoder(tokenizer_, options_.sampling.stop);
    std::string text;
    const auto show = [&](const std::string& piece) {
      text += piece;
      print(piece);
    };
    Generation result = generate(engine_, prompt, options, [&](int64_t, TokenId id) {
      const bool end = std::find(options.stop_ids.begin(), options.stop_ids.end(), id) != options.stop_ids.end();
      if (!end) show(decoder.push(id));
      return !decoder.stopped() && interrupted == 0;
    });
    show(decoder.finish());
    print("\n");
    interrupted = 0;

    const Generation::Sequence& sequence = result.sequences[0];
    talk.now.state = sequence.state;
    talk.now.text = whole;
    talk.now.pending.clear();
    if (!sequence.ids.empty()) {
      // What the tokens spell after those before them, special ones included.
      std::vector<TokenId> ids = prompt;
      const std::string before = tokenizer_.decode(ids, false);
      ids.insert(ids.end(), sequence.ids.begin(), sequence.ids.end() - 1);
      const std::string fed = tokenizer_.decode(ids, false);
      ids.push_back(sequence.ids.back());
      const std::string all = tokenizer_.decode(ids, false);
      talk.now.text += fed.substr(std::min(before.size(), fed.size()));
      talk.now.pending = all.substr(std::min(fed.size(), all.size()));
    }
    talk.messages.push_back({{"role", "assistant"}, {"content", text}});
    if (before_) {
      result.prompt_tokens += before_->prompt_tokens;
      result.prefill_seconds += before_->prefill_seconds;
      before_.reset();
    }
    note_speed(result);
  }

  const Options& options_;
  const Tokenizer& tokenizer_;
  const ChatTemplate& template_;
  Engine& engine_;
  GenerateOptions generation_;
  Conversation talk_;
  std::vector<Conversation> forks_;
  std::optional<Generation> before_;  // what the first of two steps took
  bool told_ = false;
};

// --- Commands of the conversation

std::string argument_of(const std::string& line, std::string_view command) {
  if (line.size() <= command.size()) return {};
  return line.substr(command.size() + 1);
}

// False when the conversation ends.
bool obey(Chat& chat, const std::string& line) {
  const std::string command = line.substr(0, line.find(' '));
  const std::string argument = argument_of(line, command);
  if (command == "/quit") return false;
  if (command == "/reset") {
    chat.reset();
  } else if (command == "/fork" && argument.empty()) {
    const size_t number = chat.fork();
    note(concat("kept this place; /fork ", number, " comes back to it"));
  } else if (command == "/fork") {
    size_t number = 0;
    const char* const end = argument.data() + argument.size();
    const auto [stop, error] = std::from_chars(argument.data(), end, number);
    require(error == std::errc() && stop == end, "chat /fork: must name a kept place by its number, got ", argument);
    chat.return_to(number);
  } else if ((command == "/save" || command == "/load") && !argument.empty()) {
    if (command == "/save") {
      chat.save(argument);
    } else {
      chat.load(argument);
    }
  } else {
    fail(concat("chat: a command must be /save F, /load F, /fork [N], /reset or /quit (// begins a turn with /), got ",
                one_line(line.substr(0, 80))));
  }
  return true;
}

void talk(Chat& chat) {
  Lines lines;
  while (const std::optional<std::string> line = lines.next()) {
    try {
      if (line->empty()) continue;
      if (line->starts_with("//")) {
        chat.say(line->substr(1));
      } else if (line->starts_with('/')) {
        if (!obey(chat, *line)) return;
      } else {
        chat.say(*line);
      }
    } catch (const Interrupted&) {
      interrupted = 0;
      note("interrupted before an answer: the turn is left out");
    } catch (const Error& error) {
      if (!lines.terminal()) throw;
      note(concat("elapid: ", one_line(error.what())));
    }
  }
}

void run(const Options& o) {
  o.sampling.check();
  const std::filesystem::path folder = o.model.folder();
  const ChatTemplate chat_template = ChatTemplate::load(folder);
  const GenerationConfig config = load_generation_config(folder);
  const Tokenizer tokenizer = o.model.load_tokenizer(folder);
  const auto threads = o.model.start_threads();
  const auto model = o.model.load(folder, *threads);
  const auto poll = [] {
    if (interrupted != 0) throw Interrupted();
  };
  Engine engine(*model, *threads, {.chunk = o.run.chunk, .state = o.run.state, .between = poll});

  GenerateOptions generation = o.sampling.for_model(config, model->config(), &tokenizer);
  // Fine-tuned checkpoints end turns with the tokenizer's eos, whatever their configuration says.
  if (const auto eos = chat_template.variables().find("eos_token");
      !o.sampling.ignore_eos && eos != chat_template.variables().end()) {
    if (const auto id = tokenizer.token_to_id(eos->get<std::string>())) generation.stop_ids.push_back(*id);
  }
  generation.vocab_limit = drawable_ids(model->config(), &tokenizer);
  catch_interrupts();
  Chat chat(o, tokenizer, chat_template, engine, std::move(generation));
  talk(chat);
}

}  // namespace

Run prepare_chat(Flags& flags) {
  const auto o = std::make_shared<Options>();
  o->model.add(flags);
  o->model.add_tokenizer(flags);
  flags.text("--system", "TEXT", o->system, "What the model is told before the conversation");
  o->sampling.add(flags);
  o->run.add(flags);
  add_sampling_footer(flags);
  return [o] { run(*o); };
}

}  // namespace elapid::cli
