#include "elapid/text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include "elapid/core/error.h"
#include "elapid/text/json_fields.h"
#include "elapid/text/unicode.h"

#include <algorithm>
#include <array>
#include <functional>
#include <iomanip>
#include <limits>
#include <optional>
#include <pcre2.h>
#include <sstream>
#include <vector>

namespace elapid {
namespace {

constexpr size_t kMaxPattern = 1 << 16;
constexpr size_t kMaxTranslated = 1 << 20;

std::string hex(char32_t code) {
  std::ostringstream out;
  out << "\\x{" << std::hex << static_cast<uint32_t>(code) << "}";
  return out.str();
}

std::string range_text(char32_t first, char32_t last) {
  return first == last ? hex(first) : hex(first) + "-" + hex(last);
}

// All code points for which the predicate holds, as the inside of a bracket expression.
std::string ranges_where(const std::function<bool(char32_t)>& holds) {
  std::string out;
  for (char32_t code = 0; code < unicode::kEnd;) {
    if (code == 0xD800) code = 0xE000;
    if (!holds(code)) {
      ++code;
      continue;
    }
    const char32_t first = code;
    while (code < unicode::kEnd && code != 0xD800 && holds(code)) ++code;
    out += range_text(first, code - 1);
  }
  return out;
}

// Oniguruma's syntax → PCRE2's. One pass over the pattern; everything that is not known to mean the same is an Error.
class Translator {
 public:
  Translator(std::string_view pattern, const std::string& what) : pattern_(pattern), what_(what) {}

  std::string translate() {
    while (at_ < pattern_.size()) {
      require_small();
      switch (pattern_[at_]) {
        case '\\': escape_outside(); break;
        case '[': bracket(); break;
        case '(': group(); break;
        case '{': braces(); break;
        default: out_ += pattern_[at_++];
      }
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void unsupported(const std::string& construct) const {
    fail(concat(what_, ": the regular expression uses ", construct, ", which is not supported, in ", quote(pattern_)));
  }

  // A shorthand of two characters can stand for thousands.
  void require_small() const {
    require(out_.size() <= kMaxTranslated, what_, ": the regular expression is too large, ", pattern_.size(), " bytes");
  }

  [[nodiscard]] bool looking_at(std::string_view text) const { return pattern_.substr(at_).starts_with(text); }

  // A set of characters, as the inside of a bracket expression.
  struct Set {
    std::string items;
    bool negated = false;
  };

  static std::string newer_in_class(std::string_view name) {
    std::string out;
    for (const unicode::CategoryRange& range : unicode::newer_categories()) {
      if (unicode::in_class(range.category, name)) out += range_text(range.first, range.last);
    }
    return out;
  }

  static std::string class_items(std::string_view name) { return concat("\\p{", name, "}", newer_in_class(name)); }

  static const std::string& space_items() {
    static const std::string items = ranges_where(unicode::is_space);
    return items;
  }

  static const std::string& word_items() {
    static const std::string items = class_items("L") + class_items("M") + class_items("Nd") + class_items("Nl") +
                                     class_items("Pc") +
                                     R"(\x{24b6}-\x{24e9}\x{1f130}-\x{1f149}\x{1f150}-\x{1f169}\x{1f170}-\x{1f189})";
    return items;
  }

  // Outside of brackets alone, Oniguruma takes the superscripts and fractions of Latin-1 for words as well.
  static const std::string& outer_word_items() {
    static const std::string items = word_items() + R"(\x{b2}\x{b3}\x{b9}\x{bc}-\x{be})";
    return items;
  }

  // \p{…} after the backslash: general categories get their newer members, scripts mean the script alone.
  Set property() {
    const bool upper = pattern_[at_] == 'P';
    const size_t close = pattern_.find('}', at_);
    if (!looking_at(upper ? "P{" : "p{") || close == std::string_view::npos) unsupported("\\p without {name}");
    std::string_view name = pattern_.substr(at_ + 2, close - at_ - 2);
    at_ = close + 1;
    bool negated = upper;
    if (name.starts_with('^')) {
      negated = !negated;
      name.remove_prefix(1);
    }
    const bool plain = !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
    });
    if (!plain) unsupported(concat("the property ", quote(name)));
    std::string canonical(name);
    for (size_t i = 0; i < canonical.size(); ++i) {
      canonical[i] = static_cast<char>(i == 0 ? std::toupper(canonical[i]) : std::tolower(canonical[i]));
    }
    if (unicode::is_class_name(canonical)) {
      last_class_ = canonical;
      return {class_items(canonical), negated};
    }
    last_class_.clear();
    const bool han = canonical == "Han";
    const std::string script = concat("\\p{sc:", name, "}");
    if (compiles(script)) return {script + (han ? R"(\x{2b739}\x{2ebf0}-\x{2ee5d}\x{31350}-\x{323af})" : ""), negated};
    const std::string binary = concat("\\p{", name, "}");
    if (!compiles(binary)) unsupported(concat("the property ", quote(name)));
    return {binary, negated};
  }

  static bool compiles(const std::string& pattern) {
    int error = 0;
    PCRE2_SIZE where = 0;
    pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                     PCRE2_UTF | PCRE2_UCP, &error, &where, nullptr);
    pcre2_code_free(code);
    return code != nullptr;
  }

  // The shorthand sets; at_ is behind the backslash and stays there when it is none.
  std::optional<Set> shorthand() {
    const char kind = pattern_[at_];
    if (kind == 'p' || kind == 'P') return property();
    last_class_.clear();
    const bool negated = kind >= 'A' && kind <= 'Z';
    switch (kind) {
      case 's':
      case 'S': ++at_; return Set{space_items(), negated};
      case 'w':
      case 'W': ++at_; return Set{word_items(), negated};
      case 'd':
      case 'D':
        ++at_;
        last_class_ = "Nd";
        return Set{class_items("Nd"), negated};
      case 'h':
      case 'H': ++at_; return Set{"0-9A-Fa-f", negated};
      default: return std::nullopt;
    }
  }

  // A negated set inside brackets has to be written out.
  std::string complement(char kind, const Set& set) {
    switch (kind) {
      case 'S': return ranges_where([](char32_t code) { return !unicode::is_space(code); });
      case 'W': return ranges_where([](char32_t code) { return !unicode::is_alphanumeric(code); });
      case 'H': return R"(\x{0}-/:-@G-`g-\x{d7ff}\x{e000}-\x{10ffff})";
      default: break;
    }
    if (!last_class_.empty()) {
      return ranges_where([this](char32_t code) { return !unicode::in_class(unicode::category(code), last_class_); });
    }
    if (set.items.starts_with("\\p{") && set.items.ends_with('}') && set.items.find('}') + 1 == set.items.size()) {
      return "\\P" + set.items.substr(2);
    }
    unsupported("a negated property in brackets");
  }

  // Escapes of one character; at_ is behind the backslash.
  std::string character() {
    const char kind = pattern_[at_];
    const auto is_hex = [this](size_t i) {
      return i < pattern_.size() && std::isxdigit(static_cast<unsigned char>(pattern_[i]));
    };
    switch (kind) {
      case 't':
      case 'n':
      case 'r':
      case 'f':
      case 'a':
      case 'e': ++at_; return {'\\', kind};
      case 'v': ++at_; return hex(0x0B);
      case 'x':
      case 'u': {
        size_t begin = at_ + 1, end = begin;
        const bool braced = kind == 'x' && begin < pattern_.size() && pattern_[begin] == '{';
        if (braced) ++begin, ++end;
        const size_t most = braced ? 6 : kind == 'u' ? 4 : 2;
        while (end - begin < most && is_hex(end)) ++end;
        if (end == begin || (kind == 'u' && end - begin != 4)) unsupported(concat("a malformed \\", kind));
        if (braced && (end == pattern_.size() || pattern_[end] != '}')) unsupported("a malformed \\x{…}");
        const auto code =
            static_cast<char32_t>(std::stoul(std::string(pattern_.substr(begin, end - begin)), nullptr, 16));
        if (kind == 'x' && !braced && code >= 0x80) unsupported("\\x of a byte that is not ASCII");
        at_ = end + (braced ? 1 : 0);
        return hex(code);
      }
      default: break;
    }
    const auto byte = static_cast<unsigned char>(kind);
    if (byte >= 0x80) {  // an escaped character is itself
      const auto length = static_cast<size_t>(unicode::decode(pattern_.data() + at_).length);
      at_ += length;
      return std::string(pattern_.substr(at_ - length, length));
    }
    if (std::isalnum(byte)) unsupported(concat("the escape \\", kind));
    ++at_;
    return {'\\', kind};
  }

  void escape_outside() {
    if (++at_ == pattern_.size()) unsupported("a trailing backslash");
    const char kind = pattern_[at_];
    if (const std::optional<Set> set = shorthand()) {
      const std::string& items = kind == 'w' || kind == 'W' ? outer_word_items() : set->items;
      out_ += (set->negated ? "[^" : "[") + items + "]";
      return;
    }
    if (kind == 'b' || kind == 'B') {
      ++at_;
      const std::string word = "[" + outer_word_items() + "]";
      out_ += kind == 'b' ? "(?:(?<=" + word + ")(?!" + word + ")|(?<!" + word + ")(?=" + word + "))"
                          : "(?:(?<=" + word + ")(?=" + word + ")|(?<!" + word + ")(?!" + word + "))";
    } else if (kind == 'A' || kind == 'z' || kind == 'Z' || (kind >= '1' && kind <= '9')) {
      ++at_;
      out_ += {'\\', kind};
    } else {
      out_ += character();
    }
  }

  void bracket() {
    out_ += pattern_[at_++];
    if (at_ < pattern_.size() && pattern_[at_] == '^') out_ += pattern_[at_++];
    for (bool first = true;; first = false) {
      require_small();
      if (at_ == pattern_.size()) unsupported("an unclosed [");
      if (looking_at("&&")) unsupported("an intersection of brackets (&&)");
      const char next = pattern_[at_];
      if (next == ']' && !first) break;
      if (next == '[') {
        posix_class();
      } else if (next == '\\') {
        if (++at_ == pattern_.size()) unsupported("a trailing backslash");
        const char kind = pattern_[at_];
        if (kind == 'b') {
          ++at_;
          out_ += hex(8);
        } else if (const std::optional<Set> set = shorthand()) {
          out_ += set->negated ? complement(kind, *set) : set->items;
        } else {
          out_ += character();
        }
      } else {
        out_ += next;
        ++at_;
      }
    }
    out_ += pattern_[at_++];
  }

  void posix_class() {
    if (looking_at("[:space:]")) {
      out_ += space_items();
    } else if (looking_at("[:digit:]")) {
      out_ += class_items("Nd");
    } else if (looking_at("[:punct:]")) {
      out_ += class_items("P") + class_items("S");
    } else {
      unsupported("brackets within brackets");
    }
    at_ += 9;
  }

  void group() {
    if (!looking_at("(?")) {
      out_ += pattern_[at_++];
      return;
    }
    for (const std::string_view known : {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!"}) {
      if (looking_at(known)) {
        out_ += known;
        at_ += known.size();
        return;
      }
    }
    out_ += "(?";
    at_ += 2;
    // Ruby's m lets the dot match newlines: PCRE2's s.
    while (at_ < pattern_.size() && pattern_[at_] != ':' && pattern_[at_] != ')') {
      const char flag = pattern_[at_++];
      if (flag != 'i' && flag != 'm' && flag != 'x' && flag != '-')
        unsupported(concat("the group option ", quote({&flag, 1})));
      out_ += flag == 'm' ? 's' : flag;
    }
    if (at_ == pattern_.size()) unsupported("an unclosed group");
    out_ += pattern_[at_++];
  }

  void braces() {
    size_t end = at_ + 1;
    const auto digits = [&] {
      const size_t begin = end;
      while (end < pattern_.size() && pattern_[end] >= '0' && pattern_[end] <= '9') ++end;
      return pattern_.substr(begin, end - begin);
    };
    const std::string_view least = digits();
    const bool comma = end < pattern_.size() && pattern_[end] == ',';
    if (comma) ++end;
    const std::string_view most = comma ? digits() : least;
    const bool quantifier = end < pattern_.size() && pattern_[end] == '}' && !(least.empty() && most.empty());
    if (!quantifier) {
      out_ += "\\{";
      ++at_;
      return;
    }
    at_ = end + 1;
    out_ += concat("{", least.empty() ? "0" : least, comma ? "," : "", comma ? most : "", "}");
    // To Ruby these repeat the repetition or make it optional; to PCRE2 they make it possessive or lazy.
    if (looking_at("+")) unsupported("a + after {…}");
    if (!comma && looking_at("?")) unsupported("a ? after {n}");
  }

  std::string_view pattern_;
  const std::string& what_;
  size_t at_ = 0;
  std::string out_;
  std::string last_class_;  // the general category that the last shorthand named
};

struct CompileContextFree {
  void operator()(pcre2_compile_context* context) const { pcre2_compile_context_free(context); }
};

// What a thread needs to match; a match never reads what an earlier one left.
struct Matcher {
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(size_t{32} << 10, size_t{16} << 20, nullptr);

  Matcher() {
    require(context != nullptr && data != nullptr, "regular expression: out of memory");
    if (stack != nullptr) pcre2_jit_stack_assign(context, nullptr, stack);
    pcre2_set_heap_limit(context, 256 << 10);  // KiB
  }
  ~Matcher() {
    pcre2_jit_stack_free(stack);
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
  }
  Matcher(const Matcher&) = delete;
  Matcher& operator=(const Matcher&) = delete;
};

std::string pcre2_message(int error) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(error, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

}  // namespace

void Regex::Free::operator()(void* code) const { pcre2_code_free(static_cast<pcre2_code*>(code)); }

Regex Regex::compile(std::string_view pattern, const std::string& what) {
  require(pattern.size() <= kMaxPattern, what, ": a regular expression may have ", kMaxPattern, " bytes, got ",
          pattern.size());
  return Regex(Translator(pattern, what).translate(), PCRE2_MULTILINE, what);
}

Regex Regex::literal(std::string_view text, const std::string& what) {
  require(!text.empty(), what, ": the pattern must not be empty");
  return Regex(text, PCRE2_LITERAL, what);
}

Regex::Regex(std::string_view pattern, uint32_t options, std::string what) : what_(std::move(what)) {
  const std::unique_ptr<pcre2_compile_context, CompileContextFree> context(pcre2_compile_context_create(nullptr));
  require(context != nullptr, what_, ": out of memory");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE where = 0;
  const uint32_t unicode = (options & PCRE2_LITERAL) != 0 ? PCRE2_UTF : PCRE2_UTF | PCRE2_UCP;
  code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), unicode | options, &error,
                            &where, context.get()));
  require(code_ != nullptr, what_, ": the regular expression does not compile (", pcre2_message(error), "), got ",
          quote(pattern));
  auto* code = static_cast<pcre2_code*>(code_.get());
  // Without executable memory the interpreter serves.
  (void)pcre2_jit_compile(code, PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD);
  uint32_t lookbehind = 0;
  pcre2_pattern_info(code, PCRE2_INFO_MAXLOOKBEHIND, &lookbehind);
  lookbehind_ = std::max<int64_t>(1, lookbehind);  // one tells ^ and \A that the text has begun
}

Regex::Match Regex::find(std::string_view text, size_t from, bool more_follows) const {
  thread_local Matcher matcher;
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  // Enough for every linear pattern over a text of this size, too little for an exponential one.
  const uint64_t limit = 10'000'000 + 16 * static_cast<uint64_t>(text.size());
  pcre2_set_match_limit(matcher.context,
                        static_cast<uint32_t>(std::min<uint64_t>(limit, std::numeric_limits<uint32_t>::max())));
  const uint32_t options = PCRE2_NO_UTF_CHECK | (more_follows ? PCRE2_PARTIAL_HARD : 0);
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  int result = pcre2_match(code, subject, text.size(), from, options, matcher.data, matcher.context);
  if (result == PCRE2_ERROR_JIT_STACKLIMIT) {
    result = pcre2_match(code, subject, text.size(), from, options | PCRE2_NO_JIT, matcher.data, matcher.context);
  }
  if (result == PCRE2_ERROR_NOMATCH) return {Match::none, 0, 0};
  require(result >= 0 || result == PCRE2_ERROR_PARTIAL, what_, ": matching the regular expression failed (",
          pcre2_message(result), ") on a text of ", text.size(), " bytes");
  const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(matcher.data);
  return {result == PCRE2_ERROR_PARTIAL ? Match::partial : Match::found, bounds[0], bounds[1]};
}

bool RegexScanner::next(std::string_view text, size_t at, bool last, Event& event) {
  if (queued_) {
    event = {at, queued_end_, true, true};
    queued_ = false;
    after_match_ = true;
    return true;
  }
  // The end of the text can hold an empty match, though not in an empty text.
  const auto end_counts = [&] { return last && !text.empty() && !after_match_; };
  for (size_t from = at; from < text.size() || (from == text.size() && end_counts());) {
    const Regex::Match match = regex_->find(text, from, !last);
    if (match.kind == Regex::Match::none) {
      if (at == text.size()) return false;
      event = {at, text.size(), false, last};
      after_match_ = false;
      return true;
    }
    const bool empty = match.begin == match.end;
    const bool certain = match.kind == Regex::Match::found && (last || !empty || match.end < text.size());
    if (certain && empty && after_match_ && match.end == at) {
      from += static_cast<size_t>(unicode::decode(text.data() + from).length);
      continue;
    }
    if (match.begin > at) {
      event = {at, match.begin, false, certain};
      queued_ = certain;
      queued_end_ = match.end;
      after_match_ = false;
      return true;
    }
    if (!certain) return false;
    event = {match.begin, match.end, true, true};
    after_match_ = true;
    return true;
  }
  if (at < text.size()) {  // the last character, after an empty match that was skipped
    event = {at, text.size(), false, last};
    after_match_ = false;
    return true;
  }
  return false;
}

size_t RegexScanner::context(std::string_view text, size_t at) const {
  size_t begin = at;
  for (int64_t i = 0; i < regex_->lookbehind() && begin > 0; ++i)
    begin = unicode::last_character(text.substr(0, begin));
  return at - begin;
}

std::shared_ptr<const Regex> parse_pattern(const Json& json, const std::string& what) {
  const Json& pattern = object_field(json, "pattern", what);
  if (has_field(pattern, "String")) {
    return std::make_shared<const Regex>(Regex::literal(string_field(pattern, "String", what), what));
  }
  return std::make_shared<const Regex>(Regex::compile(string_field(pattern, "Regex", what), what));
}

}  // namespace elapid
