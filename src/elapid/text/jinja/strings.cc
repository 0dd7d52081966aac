#include "elapid/text/jinja/strings.h"

#include "elapid/text/unicode.h"

#include <algorithm>
#include <array>
#include <utf8proc.h>

namespace elapid::jinja {
namespace {

using unicode::Category;

// Characters with more than one in upper case (Unicode's SpecialCasing.txt); and those whose title case is neither that
// nor a single character.
struct Expansion {
  char32_t from;
  std::array<char32_t, 3> to;
};
constexpr auto kUpper = std::to_array<Expansion>(
    {{0xDF, {0x53, 0x53, 0}},         {0x149, {0x2BC, 0x4E, 0}},       {0x1F0, {0x4A, 0x30C, 0}},
     {0x390, {0x399, 0x308, 0x301}},  {0x3B0, {0x3A5, 0x308, 0x301}},  {0x587, {0x535, 0x552, 0}},
     {0x1E96, {0x48, 0x331, 0}},      {0x1E97, {0x54, 0x308, 0}},      {0x1E98, {0x57, 0x30A, 0}},
     {0x1E99, {0x59, 0x30A, 0}},      {0x1E9A, {0x41, 0x2BE, 0}},      {0x1F50, {0x3A5, 0x313, 0}},
     {0x1F52, {0x3A5, 0x313, 0x300}}, {0x1F54, {0x3A5, 0x313, 0x301}}, {0x1F56, {0x3A5, 0x313, 0x342}},
     {0x1F80, {0x1F08, 0x399, 0}},    {0x1F81, {0x1F09, 0x399, 0}},    {0x1F82, {0x1F0A, 0x399, 0}},
     {0x1F83, {0x1F0B, 0x399, 0}},    {0x1F84, {0x1F0C, 0x399, 0}},    {0x1F85, {0x1F0D, 0x399, 0}},
     {0x1F86, {0x1F0E, 0x399, 0}},    {0x1F87, {0x1F0F, 0x399, 0}},    {0x1F88, {0x1F08, 0x399, 0}},
     {0x1F89, {0x1F09, 0x399, 0}},    {0x1F8A, {0x1F0A, 0x399, 0}},    {0x1F8B, {0x1F0B, 0x399, 0}},
     {0x1F8C, {0x1F0C, 0x399, 0}},    {0x1F8D, {0x1F0D, 0x399, 0}},    {0x1F8E, {0x1F0E, 0x399, 0}},
     {0x1F8F, {0x1F0F, 0x399, 0}},    {0x1F90, {0x1F28, 0x399, 0}},    {0x1F91, {0x1F29, 0x399, 0}},
     {0x1F92, {0x1F2A, 0x399, 0}},    {0x1F93, {0x1F2B, 0x399, 0}},    {0x1F94, {0x1F2C, 0x399, 0}},
     {0x1F95, {0x1F2D, 0x399, 0}},    {0x1F96, {0x1F2E, 0x399, 0}},    {0x1F97, {0x1F2F, 0x399, 0}},
     {0x1F98, {0x1F28, 0x399, 0}},    {0x1F99, {0x1F29, 0x399, 0}},    {0x1F9A, {0x1F2A, 0x399, 0}},
     {0x1F9B, {0x1F2B, 0x399, 0}},    {0x1F9C, {0x1F2C, 0x399, 0}},    {0x1F9D, {0x1F2D, 0x399, 0}},
     {0x1F9E, {0x1F2E, 0x399, 0}},    {0x1F9F, {0x1F2F, 0x399, 0}},    {0x1FA0, {0x1F68, 0x399, 0}},
     {0x1FA1, {0x1F69, 0x399, 0}},    {0x1FA2, {0x1F6A, 0x399, 0}},    {0x1FA3, {0x1F6B, 0x399, 0}},
     {0x1FA4, {0x1F6C, 0x399, 0}},    {0x1FA5, {0x1F6D, 0x399, 0}},    {0x1FA6, {0x1F6E, 0x399, 0}},
     {0x1FA7, {0x1F6F, 0x399, 0}},    {0x1FA8, {0x1F68, 0x399, 0}},    {0x1FA9, {0x1F69, 0x399, 0}},
     {0x1FAA, {0x1F6A, 0x399, 0}},    {0x1FAB, {0x1F6B, 0x399, 0}},    {0x1FAC, {0x1F6C, 0x399, 0}},
     {0x1FAD, {0x1F6D, 0x399, 0}},    {0x1FAE, {0x1F6E, 0x399, 0}},    {0x1FAF, {0x1F6F, 0x399, 0}},
     {0x1FB2, {0x1FBA, 0x399, 0}},    {0x1FB3, {0x391, 0x399, 0}},     {0x1FB4, {0x386, 0x399, 0}},
     {0x1FB6, {0x391, 0x342, 0}},     {0x1FB7, {0x391, 0x342, 0x399}}, {0x1FBC, {0x391, 0x399, 0}},
     {0x1FC2, {0x1FCA, 0x399, 0}},    {0x1FC3, {0x397, 0x399, 0}},     {0x1FC4, {0x389, 0x399, 0}},
     {0x1FC6, {0x397, 0x342, 0}},     {0x1FC7, {0x397, 0x342, 0x399}}, {0x1FCC, {0x397, 0x399, 0}},
     {0x1FD2, {0x399, 0x308, 0x300}}, {0x1FD3, {0x399, 0x308, 0x301}}, {0x1FD6, {0x399, 0x342, 0}},
     {0x1FD7, {0x399, 0x308, 0x342}}, {0x1FE2, {0x3A5, 0x308, 0x300}}, {0x1FE3, {0x3A5, 0x308, 0x301}},
     {0x1FE4, {0x3A1, 0x313, 0}},     {0x1FE6, {0x3A5, 0x342, 0}},     {0x1FE7, {0x3A5, 0x308, 0x342}},
     {0x1FF2, {0x1FFA, 0x399, 0}},    {0x1FF3, {0x3A9, 0x399, 0}},     {0x1FF4, {0x38F, 0x399, 0}},
     {0x1FF6, {0x3A9, 0x342, 0}},     {0x1FF7, {0x3A9, 0x342, 0x399}}, {0x1FFC, {0x3A9, 0x399, 0}},
     {0xFB00, {0x46, 0x46, 0}},       {0xFB01, {0x46, 0x49, 0}},       {0xFB02, {0x46, 0x4C, 0}},
     {0xFB03, {0x46, 0x46, 0x49}},    {0xFB04, {0x46, 0x46, 0x4C}},    {0xFB05, {0x53, 0x54, 0}},
     {0xFB06, {0x53, 0x54, 0}},       {0xFB13, {0x544, 0x546, 0}},     {0xFB14, {0x544, 0x535, 0}},
     {0xFB15, {0x544, 0x53B, 0}},     {0xFB16, {0x54E, 0x546, 0}},     {0xFB17, {0x544, 0x53D, 0}}});
constexpr auto kTitle = std::to_array<Expansion>(
    {{0xDF, {0x53, 0x73, 0}},      {0x587, {0x535, 0x582, 0}},      {0x1FB2, {0x1FBA, 0x345, 0}},
     {0x1FB4, {0x386, 0x345, 0}},  {0x1FB7, {0x391, 0x342, 0x345}}, {0x1FC2, {0x1FCA, 0x345, 0}},
     {0x1FC4, {0x389, 0x345, 0}},  {0x1FC7, {0x397, 0x342, 0x345}}, {0x1FF2, {0x1FFA, 0x345, 0}},
     {0x1FF4, {0x38F, 0x345, 0}},  {0x1FF7, {0x3A9, 0x342, 0x345}}, {0xFB00, {0x46, 0x66, 0}},
     {0xFB01, {0x46, 0x69, 0}},    {0xFB02, {0x46, 0x6C, 0}},       {0xFB03, {0x46, 0x66, 0x69}},
     {0xFB04, {0x46, 0x66, 0x6C}}, {0xFB05, {0x53, 0x74, 0}},       {0xFB06, {0x53, 0x74, 0}},
     {0xFB13, {0x544, 0x576, 0}},  {0xFB14, {0x544, 0x565, 0}},     {0xFB15, {0x544, 0x56B, 0}},
     {0xFB16, {0x54E, 0x576, 0}},  {0xFB17, {0x544, 0x56D, 0}}});

template <size_t n>
bool append_expansion(const std::array<Expansion, n>& table, char32_t code, std::string& out) {
  const auto found = std::lower_bound(table.begin(), table.end(), code,
                                      [](const Expansion& row, char32_t value) { return row.from < value; });
  if (found == table.end() || found->from != code) return false;
  for (const char32_t to : found->to) {
    if (to != 0) unicode::append(out, to);
  }
  return true;
}

char32_t simple_upper(char32_t code) { return static_cast<char32_t>(utf8proc_toupper(static_cast<int32_t>(code))); }
char32_t simple_title(char32_t code) { return static_cast<char32_t>(utf8proc_totitle(static_cast<int32_t>(code))); }
char32_t simple_lower(char32_t code) { return static_cast<char32_t>(utf8proc_tolower(static_cast<int32_t>(code))); }

void append_upper(char32_t code, std::string& out) {
  if (code < 0x80) {
    out += static_cast<char>(code >= 'a' && code <= 'z' ? code - 32 : code);
  } else if (!append_expansion(kUpper, code, out)) {
    unicode::append(out, simple_upper(code));
  }
}

void append_title(char32_t code, std::string& out) {
  if (code < 0x80) return append_upper(code, out);
  if (append_expansion(kTitle, code, out)) return;
  const char32_t single = simple_title(code);
  if (single == code && append_expansion(kUpper, code, out)) return;
  unicode::append(out, single);
}

bool is_cased(char32_t code) {
  const Category category = unicode::category(code);
  return category == Category::Lu || category == Category::Ll || category == Category::Lt ||
         simple_upper(code) != code || simple_lower(code) != code;
}

// Does not matter to whether a sigma ends its word.
bool is_case_ignorable(char32_t code) {
  const Category category = unicode::category(code);
  return category == Category::Mn || category == Category::Me || category == Category::Cf || category == Category::Lm ||
         category == Category::Sk || code == '\'' || code == '.' || code == ':' || code == 0xB7 || code == 0x2019 ||
         code == 0x2018 || code == 0x2024 || code == 0x2027;
}

std::u32string codes_of(std::string_view text) {
  std::u32string codes;
  for (size_t at = 0; at < text.size();) {
    const unicode::Decoded next = unicode::decode(text.data() + at);
    codes.push_back(next.code);
    at += static_cast<size_t>(next.length);
  }
  return codes;
}

constexpr char32_t kSigma = 0x3A3;

// A capital sigma is a final one after a cased letter and before none.
bool is_final(const std::u32string& codes, size_t at) {
  size_t before = at;
  while (before > 0 && is_case_ignorable(codes[before - 1])) --before;
  if (before == 0 || !is_cased(codes[before - 1])) return false;
  size_t after = at + 1;
  while (after < codes.size() && is_case_ignorable(codes[after])) ++after;
  return after == codes.size() || !is_cased(codes[after]);
}

void append_lower_at(const std::u32string& codes, size_t at, std::string& out) {
  if (codes[at] == kSigma) {
    unicode::append(out, is_final(codes, at) ? 0x3C2 : 0x3C3);
  } else {
    unicode::append_lower(out, codes[at]);
  }
}

template <class Strip>
std::string_view strip_while(std::string_view text, bool left, Strip strips) {
  while (!text.empty()) {
    const size_t begin = left ? 0 : unicode::last_character(text);
    const unicode::Decoded next = unicode::decode(text.data() + begin);
    if (!strips(next.code)) break;
    const auto length = static_cast<size_t>(next.length);
    if (left) {
      text.remove_prefix(length);
    } else {
      text.remove_suffix(length);
    }
  }
  return text;
}

auto one_of(std::string_view set) {
  return [codes = codes_of(set)](char32_t code) { return codes.find(code) != std::u32string::npos; };
}

bool is_line_end(char32_t code) {
  return (code >= 0x0A && code <= 0x0D) || (code >= 0x1C && code <= 0x1E) || code == 0x85 || code == 0x2028 ||
         code == 0x2029;
}

// Whether there is a letter of one case and none of another.
bool is_all(std::string_view text, Category wanted) {
  bool any = false;
  for (const char32_t code : codes_of(text)) {
    const Category category = unicode::category(code);
    if (category == wanted) {
      any = true;
    } else if (category == Category::Lu || category == Category::Ll || category == Category::Lt) {
      return false;
    }
  }
  return any;
}

}  // namespace

bool is_python_space(char32_t code) { return unicode::is_space(code) || (code >= 0x1C && code <= 0x1F); }

std::string_view strip_left(std::string_view text) { return strip_while(text, true, is_python_space); }
std::string_view strip_right(std::string_view text) { return strip_while(text, false, is_python_space); }
std::string_view strip_left(std::string_view text, std::string_view set) {
  return strip_while(text, true, one_of(set));
}
std::string_view strip_right(std::string_view text, std::string_view set) {
  return strip_while(text, false, one_of(set));
}

std::string upper(std::string_view text) {
  std::string out;
  for (const char32_t code : codes_of(text)) append_upper(code, out);
  return out;
}

std::string lower(std::string_view text) {
  std::string out;
  const std::u32string codes = codes_of(text);
  for (size_t i = 0; i < codes.size(); ++i) append_lower_at(codes, i, out);
  return out;
}

std::string title(std::string_view text) {
  std::string out;
  const std::u32string codes = codes_of(text);
  bool inside = false;
  for (size_t i = 0; i < codes.size(); ++i) {
    if (inside) {
      append_lower_at(codes, i, out);
    } else {
      append_title(codes[i], out);
    }
    inside = is_cased(codes[i]);
  }
  return out;
}

std::string capitalize(std::string_view text) {
  std::string out;
  const std::u32string codes = codes_of(text);
  for (size_t i = 0; i < codes.size(); ++i) {
    if (i == 0) {
      append_title(codes[i], out);
    } else {
      append_lower_at(codes, i, out);
    }
  }
  return out;
}

std::string swap_case(std::string_view text) {
  std::string out;
  const std::u32string codes = codes_of(text);
  for (size_t i = 0; i < codes.size(); ++i) {
    if (unicode::category(codes[i]) == Category::Lu) {
      append_lower_at(codes, i, out);
    } else {
      append_upper(codes[i], out);
    }
  }
  return out;
}

std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const unicode::Decoded next = unicode::decode(text.data() + at);
    size_t end = at + static_cast<size_t>(next.length);
    if (is_line_end(next.code)) {
      if (next.code == '\r' && end < text.size() && text[end] == '\n') ++end;
      lines.push_back(text.substr(begin, (keep_ends ? end : at) - begin));
      begin = end;
    }
    at = end;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

bool is_upper(std::string_view text) { return is_all(text, Category::Lu); }
bool is_lower(std::string_view text) { return is_all(text, Category::Ll); }

}  // namespace elapid::jinja
