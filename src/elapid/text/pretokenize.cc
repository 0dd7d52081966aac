#include "elapid/text/pretokenize.h"

#include "elapid/text/json_fields.h"
#include "elapid/text/normalize.h"
#include "elapid/text/regex.h"
#include "elapid/text/unicode.h"

#include <algorithm>
#include <array>
#include <memory>

namespace elapid {
namespace {

// What becomes of the matches of a pattern (delimiters, or what is between them when inverted).
enum class Behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

Behavior parse_behavior(const Json& json, const std::string& what) {
  const std::string name = string_field(json, "behavior", what);
  if (name == "Removed") return Behavior::removed;
  if (name == "Isolated") return Behavior::isolated;
  if (name == "MergedWithPrevious") return Behavior::merged_with_previous;
  if (name == "MergedWithNext") return Behavior::merged_with_next;
  if (name == "Contiguous") return Behavior::contiguous;
  fail(concat(what, ": the behavior ", quote(name), " is not supported"));
}

// Whether two neighbouring events belong to one word.
bool joins(Behavior behavior, bool before_matches, bool matches) {
  switch (behavior) {
    case Behavior::merged_with_previous: return matches && !before_matches;
    case Behavior::merged_with_next: return before_matches && !matches;
    case Behavior::contiguous: return matches == before_matches;
    case Behavior::removed:
    case Behavior::isolated: break;
  }
  return false;
}

// The events of a pattern of one character: each such character is a match.
class CharacterScanner {
 public:
  using Event = RegexScanner::Event;

  explicit CharacterScanner(std::function<bool(char32_t)> matches) : matches_(std::move(matches)) {}

  void start() {}
  bool next(std::string_view text, size_t at, bool last, Event& event) const {
    const size_t begin = at;
    while (at < text.size()) {
      const unicode::Decoded code = unicode::decode(text.data() + at);
      const size_t end = at + static_cast<size_t>(code.length);
      if (matches_(code.code)) {
        event = at == begin ? Event{at, end, true, true} : Event{begin, at, false, true};
        return true;
      }
      at = end;
    }
    event = {begin, at, false, last};
    return at > begin;
  }
  [[nodiscard]] size_t context(std::string_view, size_t) const { return 0; }

 private:
  std::function<bool(char32_t)> matches_;
};

template <class Scanner>
class SplitStage final : public BufferedStage {
 public:
  SplitStage(Stage& next, Scanner scanner, Behavior behavior, bool invert)
      : BufferedStage(&next), scanner_(std::move(scanner)), behavior_(behavior), invert_(invert) {}

  void begin(Origin origin) override {
    scanner_.start();
    context_ = 0;
    origin_ = origin;
    state_ = State::fresh;
    continues_ = moved_ = handed_on_ = false;
  }

 private:
  enum class State { fresh, word, dropped };  // nothing yet, within a word, within text that is left out

  size_t process(std::string_view text, bool last) override {
    size_t at = context_;
    word_begin_ = at;
    typename RegexScanner::Event event;
    while (scanner_.next(text, at, last, event)) {
      const bool matches = event.match != invert_;
      const bool same = state_ != State::fresh && ((continues_ && !event.match) || joins(behavior_, matched_, matches));
      if (!same) {
        if (state_ == State::word) hand_on(text.substr(word_begin_, at - word_begin_), true);
        state_ = matches && behavior_ == Behavior::removed ? State::dropped : State::word;
        word_begin_ = at;
        handed_on_ = false;
        first_ = at == 0 && context_ == 0 && !moved_;
      }
      matched_ = matches;
      continues_ = !event.complete;
      at = event.end;
    }
    if (state_ == State::word) hand_on(text.substr(word_begin_, at - word_begin_), last);
    context_ = scanner_.context(text, at);
    moved_ = !last && (moved_ || at > 0);
    return at - context_;
  }

  void hand_on(std::string_view text, bool ends) {
    if (text.empty() && !(ends && handed_on_)) return;
    if (!handed_on_) next().begin(first_ ? origin_ : Origin::behind);
    next().feed(text, ends);
    handed_on_ = true;
  }

  Scanner scanner_;
  Behavior behavior_;
  bool invert_;
  State state_ = State::fresh;
  size_t context_ = 0;
  size_t word_begin_ = 0;
  Origin origin_ = Origin::behind;
  bool first_ = false;      // the word begins where the piece began
  bool moved_ = false;      // the text shown does not begin where the piece began
  bool matched_ = false;    // the last event's kind
  bool continues_ = false;  // the last event was a gap that may go on
  bool handed_on_ = false;  // some of the word was handed on
};

class RegexSplitScanner : public RegexScanner {
 public:
  explicit RegexSplitScanner(std::shared_ptr<const Regex> regex) : RegexScanner(*regex), owner_(std::move(regex)) {}

 private:
  std::shared_ptr<const Regex> owner_;
};

StageFactory split_by_regex(std::shared_ptr<const Regex> regex, Behavior behavior, bool invert) {
  return [=](Stage& next) {
    return std::make_unique<SplitStage<RegexSplitScanner>>(next, RegexSplitScanner(regex), behavior, invert);
  };
}

StageFactory split_by_character(std::function<bool(char32_t)> matches, Behavior behavior) {
  return [=](Stage& next) {
    return std::make_unique<SplitStage<CharacterScanner>>(next, CharacterScanner(matches), behavior, false);
  };
}

class Gpt2Stage final : public BufferedStage {
 public:
  explicit Gpt2Stage(Stage& next) : BufferedStage(&next) {}
  void begin(Origin origin) override { origin_ = origin; }

 private:
  size_t process(std::string_view text, bool last) override {
    size_t at = 0;
    while (at < text.size()) {
      const size_t length = match_gpt2(text.substr(at), last);
      if (length == 0) break;
      next().begin(origin_);
      next().feed(text.substr(at, length), true);
      origin_ = Origin::behind;
      at += length;
    }
    return at;
  }

  Origin origin_ = Origin::behind;
};

// A space in front of every piece that does not begin with one.
class PrefixSpaceStage final : public Stage {
 public:
  explicit PrefixSpaceStage(Stage& next) : Stage(&next) {}
  void begin(Origin origin) override {
    fresh_ = origin != Origin::continued;
    Stage::begin(origin);
  }
  void feed(std::string_view text, bool last) override {
    if (fresh_ && !text.empty()) {
      fresh_ = false;
      if (text.front() != ' ') next().feed(" ", false);
    }
    next().feed(text, last);
  }

 private:
  bool fresh_ = true;
};

enum class PrependScheme { first, never, always };

class MetaspaceStage final : public Stage {
 public:
  MetaspaceStage(Stage& next, std::string replacement, PrependScheme scheme)
      : Stage(&next), replacement_(std::move(replacement)), scheme_(scheme) {}
  void begin(Origin origin) override {
    prepend_ = (scheme_ == PrependScheme::always && origin != Origin::continued) ||
               (scheme_ == PrependScheme::first && origin == Origin::text);
    Stage::begin(origin);
  }
  void feed(std::string_view text, bool last) override {
    replaced_.clear();
    if (prepend_ && !text.empty()) {
      prepend_ = false;
      if (text.front() != ' ' && !text.starts_with(replacement_)) replaced_ = replacement_;
    }
    for (size_t at = 0; at < text.size();) {
      const size_t space = std::min(text.find(' ', at), text.size());
      replaced_.append(text.substr(at, space - at));
      if (space < text.size()) replaced_.append(replacement_);
      at = space + 1;
    }
    next().feed(replaced_, last);
  }

 private:
  std::string replacement_;
  PrependScheme scheme_;
  bool prepend_ = false;
  std::string replaced_;
};

void append_metaspace(const Json& json, const std::string& what, std::vector<StageFactory>& stages) {
  const std::string replacement = character_field(json, "replacement", what);
  PrependScheme scheme = PrependScheme::always;
  if (has_field(json, "prepend_scheme")) {
    const std::string name = string_field(json, "prepend_scheme", what);
    require(name == "first" || name == "never" || name == "always", what, ": the prepend_scheme ", quote(name),
            " is not supported");
    scheme = name == "first" ? PrependScheme::first : name == "never" ? PrependScheme::never : PrependScheme::always;
  }
  if (!bool_field(json, "add_prefix_space", true, what)) {
    require(scheme == PrependScheme::never || !has_field(json, "prepend_scheme"), what,
            ": add_prefix_space does not match the prepend_scheme");
    scheme = PrependScheme::never;
  }
  stages.push_back(make_stage<MetaspaceStage>(replacement, scheme));
  if (bool_field(json, "split", true, what)) {
    const char32_t code = unicode::decode(replacement.data()).code;
    stages.push_back(
        split_by_character([code](char32_t character) { return character == code; }, Behavior::merged_with_next));
  }
}

void append_pre_tokenizer(const Json& json, const std::string& what, PreTokenizer& to) {
  const std::string type = string_field(json, "type", what);
  const std::string here = what + " " + type;
  if (type == "Sequence") {
    for (const Json& item : array_field(json, "pretokenizers", here)) append_pre_tokenizer(item, what, to);
    return;
  }
  if (to.spells_bytes) {  // not the last step: the rest is to see the spelling
    to.stages.push_back(byte_level_spelling());
    to.spells_bytes = false;
  }
  if (type == "ByteLevel") {
    if (bool_field(json, "add_prefix_space", true, here)) to.stages.push_back(make_stage<PrefixSpaceStage>());
    if (bool_field(json, "use_regex", true, here)) to.stages.push_back(make_stage<Gpt2Stage>());
    to.spells_bytes = true;
  } else if (type == "Split") {
    to.stages.push_back(
        split_by_regex(parse_pattern(json, here), parse_behavior(json, here), bool_field(json, "invert", false, here)));
  } else if (type == "Digits") {
    const bool individual = bool_field(json, "individual_digits", false, here);
    to.stages.push_back(
        split_by_character(unicode::is_numeric, individual ? Behavior::isolated : Behavior::contiguous));
  } else if (type == "Punctuation") {
    const Behavior behavior = has_field(json, "behavior") ? parse_behavior(json, here) : Behavior::isolated;
    to.stages.push_back(split_by_character(unicode::is_punctuation, behavior));
  } else if (type == "WhitespaceSplit") {
    to.stages.push_back(split_by_character(unicode::is_space, Behavior::removed));
  } else if (type == "Whitespace") {
    // \w+|[^\w\s]+
    to.stages.push_back(split_by_character(unicode::is_space, Behavior::removed));
    to.stages.push_back(split_by_character(unicode::is_word, Behavior::contiguous));
  } else if (type == "Metaspace") {
    append_metaspace(json, here, to.stages);
  } else {
    fail(concat(what, ": the type ", quote(type), " is not supported"));
  }
}

}  // namespace

PreTokenizer parse_pre_tokenizer(const Json& json, const std::string& what) {
  PreTokenizer result;
  if (!json.is_null()) append_pre_tokenizer(json, what, result);
  return result;
}

size_t match_gpt2(std::string_view text, bool last) {
  using unicode::Gpt2Class;
  static const unicode::Gpt2Classes& classes = unicode::Gpt2Classes::instance();
  const size_t size = text.size();
  const auto character = [text](size_t at) { return unicode::decode(text.data() + at); };

  if (text[0] == '\'') {
    if (size < 3 && !last) return 0;
    const char second = size > 1 ? text[1] : '\0', third = size > 2 ? text[2] : '\0';
    if (second == 's' || second == 't' || second == 'm' || second == 'd') return 2;
    if ((second == 'r' && third == 'e') || (second == 'v' && third == 'e') || (second == 'l' && third == 'l')) return 3;
  }

  // A run of one class, perhaps after a space.
  size_t at = text[0] == ' ' ? 1 : 0;
  if (at == size && !last) return 0;
  if (at < size) {
    unicode::Decoded code = character(at);
    const Gpt2Class run = classes[code.code];
    if (run != Gpt2Class::space) {
      do {
        at += static_cast<size_t>(code.length);
        if (at == size) return last ? at : 0;
        code = character(at);
      } while (classes[code.code] == run);
      return at;
    }
  }

  // White space: all of it at the end, else all but the last character, which belongs to what follows. Only a single
  // one before something stands alone.
  size_t previous = 0;
  for (at = 0; at < size;) {
    const unicode::Decoded code = character(at);
    if (classes[code.code] != Gpt2Class::space) return previous > 0 ? previous : at;
    previous = at;
    at += static_cast<size_t>(code.length);
  }
  return last ? at : 0;
}

}  // namespace elapid
