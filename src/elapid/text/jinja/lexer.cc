#include "elapid/text/jinja/lexer.h"

#include "elapid/core/error.h"
#include "elapid/io/json.h"
#include "elapid/text/jinja/strings.h"
#include "elapid/text/unicode.h"

#include <algorithm>
#include <array>
#include <charconv>

namespace elapid::jinja {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_hex(char c) { return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

// One kind of line end, and without the last one.
std::string normalized(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\r') {
      out += text[i];
    } else {
      out += '\n';
      if (i + 1 < text.size() && text[i + 1] == '\n') ++i;
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string text) : text_(std::move(text)), rest_(text_) {}

  std::vector<Token> run() {
    while (at_ < text_.size()) root();
    tokens_.push_back({Token::Kind::end, line_at(text_.size())});
    return std::move(tokens_);
  }

 private:
  // Offsets only grow, so lines are counted once.
  int line_at(size_t offset) {
    for (; counted_ < offset; ++counted_) line_ += text_[counted_] == '\n';
    return line_;
  }

  [[noreturn]] void refuse(size_t offset, const std::string& message) { throw SyntaxError{line_at(offset), message}; }

  [[nodiscard]] bool starts(size_t offset, std::string_view with) const {
    return rest_.substr(std::min(offset, rest_.size())).starts_with(with);
  }

  [[nodiscard]] size_t skip_space(size_t offset) const {
    while (offset < text_.size()) {
      const unicode::Decoded next = unicode::decode(text_.data() + offset);
      if (!is_python_space(next.code)) break;
      offset += static_cast<size_t>(next.length);
    }
    return offset;
  }

  void push(Token::Kind kind, size_t offset, std::string text = {}) {
    tokens_.push_back({kind, line_at(offset), std::move(text)});
  }

  // Text up to the next tag, stripped as the tag's sign says, then the tag.
  void root() {
    size_t tag = at_;
    for (;; ++tag) {
      tag = std::min(text_.find('{', tag), text_.size());
      if (tag == text_.size() || starts(tag, "{%") || starts(tag, "{#") || starts(tag, "{{")) break;
    }
    if (tag == text_.size()) {
      push(Token::Kind::text, at_, text_.substr(at_));
      at_ = tag;
      return;
    }
    const char kind = text_[tag + 1];
    const char sign = sign_at(tag + 2);
    emit_text(at_, tag, sign, kind != '{');
    at_ = tag + 2 + (sign != 0 ? 1 : 0);
    line_starting_ = false;
    if (kind == '#') {
      comment(tag);
    } else if (kind == '%' && raw(tag)) {
      return;
    } else {
      push(kind == '%' ? Token::Kind::block_begin : Token::Kind::print_begin, tag);
      inside(kind);
    }
  }

  [[nodiscard]] char sign_at(size_t offset) const {
    return starts(offset, "-") ? '-' : starts(offset, "+") ? '+' : '\0';
  }

  void emit_text(size_t begin, size_t end, char sign, bool strips) {
    std::string_view text = rest_.substr(begin, end - begin);
    if (sign == '-') {
      text = strip_right(text);
    } else if (sign == 0 && strips) {
      const size_t line = text.rfind('\n') + 1;  // 0 when there is none
      if (line > 0 || line_starting_) {
        if (strip_right(text.substr(line)).empty()) text = text.substr(0, line);
      }
    }
    if (!text.empty()) push(Token::Kind::text, begin, std::string(text));
  }

  // The end of a tag at `offset`: what it takes besides, or nothing when there is none.
  [[nodiscard]] size_t end_of_tag(size_t offset, std::string_view mark, bool trims, bool plus) const {
    if (plus && starts(offset, "+") && starts(offset + 1, mark)) return offset + 1 + mark.size();
    if (starts(offset, "-") && starts(offset + 1, mark)) return skip_space(offset + 1 + mark.size());
    if (!starts(offset, mark)) return std::string::npos;
    offset += mark.size();
    return trims && starts(offset, "\n") ? offset + 1 : offset;
  }

  void move_to(size_t offset) {
    at_ = offset;
    line_starting_ = text_[at_ - 1] == '\n';
  }

  void comment(size_t tag) {
    for (size_t i = at_; i < text_.size(); ++i) {
      const size_t end = end_of_tag(i, "#}", true, true);
      if (end != std::string::npos) return move_to(end);
    }
    refuse(tag, "Missing end of comment tag");
  }

  // {% raw %}…{% endraw %}
  bool raw(size_t tag) {
    size_t i = skip_space(at_);
    if (!starts(i, "raw")) return false;
    i = skip_space(i + 3);
    const size_t begin = end_of_tag(i, "%}", false, false);
    if (begin == std::string::npos) return false;
    line_starting_ = text_[begin - 1] == '\n';
    for (i = begin;; ++i) {
      i = text_.find("{%", i);
      if (i == std::string::npos) refuse(tag, "Missing end of raw directive");
      const char sign = sign_at(i + 2);
      const size_t word = skip_space(i + 2 + (sign != 0 ? 1 : 0));
      if (!starts(word, "endraw")) continue;
      const size_t end = end_of_tag(skip_space(word + 6), "%}", true, true);
      if (end == std::string::npos) continue;
      emit_text(begin, i, sign, true);
      move_to(end);
      return true;
    }
  }

  // The tokens of a tag. Its end only counts where brackets are balanced.
  void inside(char kind) {
    const bool block = kind == '%';
    std::string open;
    for (;;) {
      if (open.empty()) {
        const size_t end = end_of_tag(at_, block ? "%}" : "}}", block, block);
        if (end != std::string::npos) {
          push(block ? Token::Kind::block_end : Token::Kind::print_end, at_);
          return move_to(end);
        }
      }
      const size_t next = skip_space(at_);
      if (next > at_) {
        at_ = next;
        continue;
      }
      if (at_ >= text_.size()) return;  // the parser says what is missing
      const char c = text_[at_];
      if (is_digit(c)) {
        number();
      } else if (is_name_at(at_)) {
        name();
      } else if (c == '\'' || c == '"') {
        string(c);
      } else {
        symbol(open);
      }
    }
  }

  [[nodiscard]] bool is_name_at(size_t offset) const {
    return offset < text_.size() &&
           (text_[offset] == '_' || unicode::is_word(unicode::decode(text_.data() + offset).code));
  }

  void name() {
    const size_t begin = at_;
    while (is_name_at(at_)) at_ += static_cast<size_t>(unicode::decode(text_.data() + at_).length);
    push(Token::Kind::name, begin, text_.substr(begin, at_ - begin));
  }

  // Digits with single underscores between them.
  template <class Digit>
  [[nodiscard]] size_t digits(size_t offset, Digit digit) const {
    const auto is = [&](size_t i) { return i < text_.size() && digit(text_[i]); };
    while (is(offset) || (offset < text_.size() && text_[offset] == '_' && is(offset + 1))) ++offset;
    return offset;
  }

  void number() {
    const size_t begin = at_;
    const bool after_dot = begin > 0 && text_[begin - 1] == '.';
    const auto digit_at = [&](size_t i) { return i < text_.size() && is_digit(text_[i]); };
    const size_t whole = digits(begin, is_digit);
    size_t end = whole;
    bool real = false;
    if (!after_dot) {
      if (starts(end, ".") && digit_at(end + 1)) {
        end = digits(end + 1, is_digit);
        real = true;
      }
      if (starts(end, "e") || starts(end, "E")) {
        const size_t power = end + 1 + (starts(end + 1, "+") || starts(end + 1, "-") ? 1 : 0);
        if (digit_at(power)) {
          end = digits(power, is_digit);
          real = true;
        }
      }
    }
    int base = 10;
    size_t first = begin;
    if (!real) end = integer_end(begin, whole, base, first);
    std::string plain = text_.substr(first, end - first);
    plain.erase(std::remove(plain.begin(), plain.end(), '_'), plain.end());
    Token token{real ? Token::Kind::real : Token::Kind::integer, line_at(begin)};
    const char* const last = plain.data() + plain.size();
    const std::errc error = real ? std::from_chars(plain.data(), last, token.real).ec
                                 : std::from_chars(plain.data(), last, token.integer, base).ec;
    if (error != std::errc()) refuse(begin, concat("a number must fit 64 bits, got ", quote(plain)));
    tokens_.push_back(std::move(token));
    at_ = end;
  }

  // Where an integer ends that begins at `begin` and whose decimal digits end at `whole`; its base and first digit.
  [[nodiscard]] size_t integer_end(size_t begin, size_t whole, int& base, size_t& first) const {
    if (text_[begin] != '0') return whole;
    const auto prefixed = [&](char lower, auto digit, int of) {
      if (begin + 1 >= text_.size() || (text_[begin + 1] | 0x20) != lower) return false;
      const size_t start = begin + 2 + (starts(begin + 2, "_") ? 1 : 0);
      if (start >= text_.size() || !digit(text_[start])) return false;
      base = of;
      first = start;
      return true;
    };
    if (prefixed('x', is_hex, 16)) return digits(first, is_hex);
    const auto octal = [](char c) { return c >= '0' && c <= '7'; };
    if (prefixed('o', octal, 8)) return digits(first, octal);
    const auto binary = [](char c) { return c == '0' || c == '1'; };
    if (prefixed('b', binary, 2)) return digits(first, binary);
    return digits(begin, [](char c) { return c == '0'; });
  }

  void string(char mark) {
    const size_t begin = at_;
    size_t end = begin + 1;
    while (end < text_.size() && text_[end] != mark) end += text_[end] == '\\' ? 2 : 1;
    if (end >= text_.size()) refuse(begin, concat("a string must end, got ", quote(rest_.substr(begin))));
    push(Token::Kind::string, begin, unescaped(begin + 1, end));
    at_ = end + 1;
  }

  // Python's unicode-escape.
  std::string unescaped(size_t i, size_t end) {
    std::string out;
    while (i < end) {
      if (text_[i] != '\\') {
        out += text_[i++];
        continue;
      }
      const char c = text_[i + 1];
      i += 2;
      constexpr std::string_view kLetters = "\\'\"abfnrtv", kMeanings = "\\'\"\a\b\f\n\r\t\v";
      if (const size_t letter = kLetters.find(c); letter != std::string_view::npos) {
        out += kMeanings[letter];
      } else if (c == '\n') {
        continue;
      } else if (c >= '0' && c <= '7') {
        i = append_code(i - 1, std::min(end, i + 2), 8, out);
      } else if (c == 'x' || c == 'u' || c == 'U') {
        const size_t length = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        const auto hex = [&](size_t k) { return k < end && is_hex(text_[k]); };
        for (size_t k = 0; k < length; ++k) {
          if (!hex(i + k)) refuse(i, concat("an escape \\", c, " must have ", length, " hexadecimal digits"));
        }
        i = append_code(i, i + length, 16, out);
      } else if (c == 'N') {
        refuse(i, "escapes by character name are not supported");
      } else {
        out += '\\';
        --i;  // whatever follows stays as it is
        const auto length = static_cast<size_t>(unicode::decode(text_.data() + i).length);
        out += text_.substr(i, length);
        i += length;
      }
    }
    return out;
  }

  // Digits of a code point; returns where they end.
  size_t append_code(size_t begin, size_t end, int base, std::string& out) {
    uint32_t code = 0;
    const auto [stop, error] = std::from_chars(text_.data() + begin, text_.data() + end, code, base);
    const bool valid = error == std::errc() && code < unicode::kEnd && (code < 0xD800 || code > 0xDFFF);
    if (!valid) refuse(begin, concat("an escape must be a character, got ", quote(rest_.substr(begin, end - begin))));
    unicode::append(out, code);
    return static_cast<size_t>(stop - text_.data());
  }

  void symbol(std::string& open) {
    constexpr std::array<std::string_view, 26> kSymbols = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                                           "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                                           ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};
    const auto found = std::find_if(kSymbols.begin(), kSymbols.end(), [&](auto symbol) { return starts(at_, symbol); });
    if (found == kSymbols.end()) {
      const auto length = static_cast<size_t>(unicode::decode(text_.data() + at_).length);
      refuse(at_, concat("unexpected char ", quote(rest_.substr(at_, length))));
    }
    const char c = found->front();
    if (c == '{' || c == '(' || c == '[') open += c == '{' ? '}' : c == '(' ? ')' : ']';
    if (c == '}' || c == ')' || c == ']') {
      if (open.empty()) refuse(at_, concat("unexpected '", c, "'"));
      if (open.back() != c) refuse(at_, concat("unexpected '", c, "', expected '", open.back(), "'"));
      open.pop_back();
    }
    push(Token::Kind::symbol, at_, std::string(*found));
    at_ += found->size();
  }

  const std::string text_;
  const std::string_view rest_;
  size_t at_ = 0, counted_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view text) { return Lexer(normalized(text)).run(); }

}  // namespace elapid::jinja
