#pragma once

// What the tokenizers need to know about UTF-8 and Unicode: decoding, character classes, lower case, normal forms.
//
// The data come from utf8proc and are corrected, code point by code point, to what the `tokenizers` package uses, which
// is not one version of Unicode: 16.0 for regular expressions, 17.0 for numbers and lower case, about 9.0 for the
// normal forms and 8.0 for punctuation. A token's id depends on them.

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace elapid::unicode {

constexpr char32_t kEnd = 0x110000;
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

// --- UTF-8

// The first character of some bytes. `valid`: it is `length` bytes long. `invalid`: its first `length` bytes, as many
// as could begin a character, are to be replaced by one U+FFFD (the practice of Unicode, of Python and of Rust).
// `incomplete`: the bytes end too early to tell.
struct Utf8Step {
  enum Kind { valid, invalid, incomplete } kind;
  int length;
};
[[nodiscard]] Utf8Step utf8_step(std::string_view bytes);

// How many bytes from the start are valid: all of them, or up to the first invalid or incomplete character.
[[nodiscard]] size_t valid_utf8_prefix(std::string_view bytes);

// The character at p[0]; the text must be valid there.
struct Decoded {
  char32_t code;
  int length;
};
[[nodiscard]] inline Decoded decode(const char* p) {
  const auto byte = [p](int i) { return static_cast<char32_t>(static_cast<unsigned char>(p[i])); };
  if (byte(0) < 0x80) return {byte(0), 1};
  if (byte(0) < 0xE0) return {(byte(0) & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  if (byte(0) < 0xF0) return {(byte(0) & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
  return {(byte(0) & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F), 4};
}

// Where the last character of a valid, non-empty text begins.
[[nodiscard]] inline size_t last_character(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

void append(std::string& text, char32_t code);

// Bytes that arrive in pieces → valid UTF-8, what is not valid replaced by U+FFFD.
class LossyDecoder {
 public:
  void push(std::string_view bytes, std::string& out);
  void finish(std::string& out);

 private:
  std::string held_;  // an unfinished character
};

// --- Classes

// General categories, in utf8proc's order.
enum class Category : uint8_t {
  Cn,
  Lu,
  Ll,
  Lt,
  Lm,
  Lo,
  Mn,
  Mc,
  Me,
  Nd,
  Nl,
  No,
  Pc,
  Pd,
  Ps,
  Pe,
  Pi,
  Pf,
  Po,
  Sm,
  Sc,
  Sk,
  So,
  Zs,
  Zl,
  Zp,
  Cc,
  Cf,
  Cs,
  Co
};
[[nodiscard]] Category category(char32_t code);
// "L", "Nd" …: whether a category belongs to a class of one or two letters.
[[nodiscard]] bool in_class(Category category, std::string_view name);
// Whether that is the name of a class of categories at all.
[[nodiscard]] bool is_class_name(std::string_view name);

// Code points whose category is newer than the libraries may know.
struct CategoryRange {
  char32_t first, last;
  Category category;
};
[[nodiscard]] std::span<const CategoryRange> newer_categories();

[[nodiscard]] bool is_space(char32_t code);         // White_Space: Rust's char::is_whitespace, \s
[[nodiscard]] bool is_alphanumeric(char32_t code);  // alphabetic, a mark, a decimal digit or a connector
[[nodiscard]] bool is_word(char32_t code);          // \w of Rust's regex: these and the joiners
[[nodiscard]] bool is_numeric(char32_t code);       // Rust's char::is_numeric
[[nodiscard]] bool is_punctuation(char32_t code);   // ASCII punctuation and the categories P*

// The classes that GPT-2's pattern distinguishes, tabulated.
enum class Gpt2Class : uint8_t { other, letter, number, space };
class Gpt2Classes {
 public:
  static const Gpt2Classes& instance();
  [[nodiscard]] Gpt2Class operator[](char32_t code) const { return code < kTable ? table_[code] : Gpt2Class::other; }

 private:
  Gpt2Classes();
  static constexpr char32_t kTable = 0x33000;  // beyond are only marks, tags and private use
  std::array<Gpt2Class, kTable> table_;
};

// --- Mappings

void append_lower(std::string& text, char32_t code);

enum class NormalForm : uint8_t { nfc, nfd, nfkc, nfkd };

// A stable character is its own normal form, begins a character sequence (nothing before it matters to it) and never
// composes with what is before it. Text can be normalized in parts that begin with one.
[[nodiscard]] bool is_stable(NormalForm form, char32_t code);
void append_normalized(NormalForm form, std::string_view text, std::string& out);

}  // namespace elapid::unicode
