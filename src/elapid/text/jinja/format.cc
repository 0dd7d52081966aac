// Python's two ways of formatting text: "%s" % value and "{}".format(value).

#include "elapid/core/error.h"
#include "elapid/io/json.h"
#include "elapid/text/jinja/builtins.h"
#include "elapid/text/jinja/interpreter.h"
#include "elapid/text/unicode.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>
#include <span>

namespace elapid::jinja {
namespace {

using Kind = Value::Kind;

constexpr int64_t kMostWidth = 1 << 20, kMostPrecision = 1000;
constexpr size_t kMostText = size_t{1} << 26;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

int64_t bounded(int64_t value, int64_t most) {
  if (value > most || value < 0) throw Failure{concat("a width or precision must be 0 to ", most, ", got ", value)};
  return value;
}

// The digits at the front of the text, which they leave; nothing when there are none.
std::optional<int64_t> take_number(std::string_view& text, int64_t most) {
  if (text.empty() || !is_digit(text.front())) return {};
  int64_t value = 0;
  for (; !text.empty() && is_digit(text.front()); text.remove_prefix(1)) {
    value = bounded(10 * value + (text.front() - '0'), most);
  }
  return value;
}

std::string print_real(char type, int64_t precision, bool alternate, double value) {
  const char pattern[] = {
      '%', alternate ? '#' : '.', alternate ? '.' : '*', alternate ? '*' : type, alternate ? type : '\0', '\0'};
  std::string text(static_cast<size_t>(precision) + 350, '\0');
  const int size = std::snprintf(text.data(), text.size(), pattern, static_cast<int>(precision), value);
  text.resize(static_cast<size_t>(size));
  return text;
}

std::string print_integer(uint64_t magnitude, unsigned base, bool capital) {
  std::string text;
  do {
    text += (capital ? "0123456789ABCDEF" : "0123456789abcdef")[magnitude % base];
    magnitude /= base;
  } while (magnitude != 0);
  std::reverse(text.begin(), text.end());
  return text;
}

uint64_t magnitude_of(int64_t value) {
  return value < 0 ? -static_cast<uint64_t>(value) : static_cast<uint64_t>(value);
}

int64_t characters_in(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

std::string_view first_characters(std::string_view text, int64_t count) {
  size_t at = 0;
  for (; count > 0 && at < text.size(); --count) at += static_cast<size_t>(unicode::decode(text.data() + at).length);
  return text.substr(0, at);
}

std::string character(int64_t code) {
  if (code < 0 || code >= unicode::kEnd || (code >= 0xD800 && code < 0xE000)) {
    throw Failure{concat("%c needs a character, got ", code)};
  }
  std::string text;
  unicode::append(text, static_cast<char32_t>(code));
  return text;
}

// How one value is to be shown.
struct Layout {
  std::string fill = " ";
  char align = 0;  // '<' '>' '^' '=' (after the sign), or 0: by the kind of value
  char sign = '-';
  bool alternate = false;
  int64_t width = 0;
  char separator = 0;  // of thousands
  std::optional<int64_t> precision;
  char type = 0;
};

std::string laid_out(const Layout& layout, std::string_view sign, std::string body, char align) {
  const int64_t missing = layout.width - characters_in(body) - static_cast<int64_t>(sign.size());
  const auto fill = [&](int64_t count) {
    std::string text;
    for (int64_t i = 0; i < count; ++i) text += layout.fill;
    return text;
  };
  if (missing <= 0) return std::string(sign) + body;
  switch (align) {
    case '<': return std::string(sign) + body + fill(missing);
    case '^': return fill(missing / 2) + std::string(sign) + body + fill(missing - missing / 2);
    case '=': return std::string(sign) + fill(missing) + body;
    default: return fill(missing) + std::string(sign) + body;
  }
}

std::string grouped(std::string digits, char separator, size_t group) {
  const size_t whole = std::min(digits.find_first_not_of("0123456789abcdefABCDEF"), digits.size());
  for (size_t at = whole; at > group; at -= group) digits.insert(at - group, 1, separator);
  return digits;
}

std::string show_number(const Layout& layout, bool negative, std::string prefix, std::string digits) {
  if (layout.separator != 0) {
    const bool decimal = layout.type != 'x' && layout.type != 'X' && layout.type != 'o' && layout.type != 'b';
    digits = grouped(std::move(digits), layout.separator, decimal ? 3 : 4);
  }
  std::string sign = negative ? "-" : layout.sign == '-' ? "" : std::string(1, layout.sign);
  sign += prefix;
  return laid_out(layout, sign, std::move(digits), layout.align == 0 ? '>' : layout.align);
}

std::string show_real(const Layout& layout, double value) {
  const bool negative = std::signbit(value) && !std::isnan(value);
  double magnitude = std::abs(value);
  std::string digits;
  if (layout.type == '%') {
    digits = print_real('f', layout.precision.value_or(6), layout.alternate, magnitude * 100) + "%";
  } else if (layout.type == 0 && !layout.precision) {
    digits = real_to_string(magnitude);
  } else if (layout.type == 0) {
    digits = print_real('g', std::max<int64_t>(1, *layout.precision), layout.alternate, magnitude);
    if (digits.find_first_not_of("0123456789") == std::string::npos) digits += ".0";
  } else {
    digits =
        print_real(layout.type == 'n' ? 'g' : layout.type, layout.precision.value_or(6), layout.alternate, magnitude);
  }
  return show_number(layout, negative, "", std::move(digits));
}

std::string show_integer(const Layout& layout, int64_t value) {
  unsigned base = 10;
  std::string prefix;
  switch (layout.type) {
    case 0:
    case 'd':
    case 'n':
    case 'i':
    case 'u': break;
    case 'b': base = 2; break;
    case 'o': base = 8; break;
    case 'x':
    case 'X': base = 16; break;
    case 'c': return laid_out(layout, "", character(value), layout.align == 0 ? '<' : layout.align);
    default: return show_real(layout, static_cast<double>(value));
  }
  if (layout.precision) throw Failure{"Precision not allowed in integer format specifier"};
  if (layout.alternate && base != 10) prefix = {'0', layout.type};
  return show_number(layout, value < 0, prefix, print_integer(magnitude_of(value), base, layout.type == 'X'));
}

Layout parse_spec(std::string_view spec) {
  Layout layout;
  const auto is_align = [](char c) { return c == '<' || c == '>' || c == '^' || c == '='; };
  if (!spec.empty()) {
    const auto first = static_cast<size_t>(unicode::decode(spec.data()).length);
    if (spec.size() > first && is_align(spec[first])) {
      layout.fill = spec.substr(0, first);
      layout.align = spec[first];
      spec.remove_prefix(first + 1);
    } else if (is_align(spec.front())) {
      layout.align = spec.front();
      spec.remove_prefix(1);
    }
  }
  const auto skip = [&](char c) {
    if (!spec.starts_with(c)) return false;
    spec.remove_prefix(1);
    return true;
  };
  for (const char sign : {'+', '-', ' '}) {
    if (!skip(sign)) continue;
    layout.sign = sign;
    break;
  }
  layout.alternate = skip('#');
  if (skip('0') && layout.align == 0) {
    layout.align = '=';
    layout.fill.assign(1, '0');
  }
  layout.width = take_number(spec, kMostWidth).value_or(0);
  for (const char separator : {',', '_'}) {
    if (skip(separator)) layout.separator = separator;
  }
  if (skip('.')) {
    layout.precision = take_number(spec, kMostPrecision);
    if (!layout.precision) throw Failure{"Format specifier missing precision"};
  }
  if (spec.size() == 1 && static_cast<unsigned char>(spec.front()) < 0x80) {
    layout.type = spec.front();
    spec.remove_prefix(1);
  }
  if (!spec.empty()) throw Failure{concat("Invalid format specifier, got ", quote(spec))};
  return layout;
}

// format(value, spec)
std::string shown(Interpreter& on, const Value& value, std::string_view spec) {
  if (spec.empty()) return on.text_of(value);
  const Layout layout = parse_spec(spec);
  const auto allow = [&](std::string_view types) {
    if (layout.type != 0 && types.find(layout.type) == std::string_view::npos) {
      throw Failure{concat("Unknown format code '", layout.type, "' for object of type '", type_name(value), "'")};
    }
  };
  if (value.is(Kind::real)) {
    allow("eEfFgGn%");
    return show_real(layout, value.real());
  }
  if (value.is_integral() && !(value.is(Kind::boolean) && layout.type == 0)) {
    allow("bcdoxXneEfFgG%");
    return show_integer(layout, value.integer());
  }
  if (!value.is_string() && !value.is(Kind::boolean)) {
    throw Failure{concat("unsupported format string passed to ", type_name(value), ".__format__")};
  }
  allow("s");
  if (layout.align == '=' && layout.fill != "0") throw Failure{"'=' alignment not allowed in string format specifier"};
  const std::string text = on.text_of(value);
  const std::string_view kept = layout.precision ? first_characters(text, *layout.precision) : std::string_view(text);
  return laid_out(layout, "", std::string(kept), layout.align == 0 || layout.align == '=' ? '<' : layout.align);
}

// "{}" and its relatives in one pattern.
class Braces {
 public:
  Braces(Interpreter& on, const Arguments& arguments) : on_(on), arguments_(arguments) {}

  std::string run(std::string_view pattern, int depth) {
    if (depth > 2) throw Failure{"Max string recursion exceeded"};
    std::string out;
    while (!pattern.empty()) {
      on_.spend(1);
      if (out.size() > kMostText) throw Failure{"format makes too much text"};
      const size_t brace = std::min(pattern.find_first_of("{}"), pattern.size());
      out += pattern.substr(0, brace);
      pattern.remove_prefix(brace);
      if (pattern.empty()) break;
      if (pattern.size() > 1 && pattern[0] == pattern[1]) {
        out += pattern[0];
        pattern.remove_prefix(2);
        continue;
      }
      if (pattern[0] == '}') throw Failure{"Single '}' encountered in format string"};
      const size_t end = end_of_field(pattern);
      out += field(pattern.substr(1, end - 1), depth);
      pattern.remove_prefix(end + 1);
    }
    return out;
  }

 private:
  static size_t end_of_field(std::string_view pattern) {
    int open = 0;
    for (size_t i = 0; i < pattern.size(); ++i) {
      open += pattern[i] == '{' ? 1 : pattern[i] == '}' ? -1 : 0;
      if (open == 0) return i;
    }
    throw Failure{"expected '}' before end of string"};
  }

  std::string field(std::string_view text, int depth) {
    size_t end = 0;
    bool in_index = false;
    for (; end < text.size(); ++end) {
      if (text[end] == '[') in_index = true;
      if (text[end] == ']') in_index = false;
      if (!in_index && (text[end] == '!' || text[end] == ':')) break;
    }
    Value value = find(text.substr(0, end));
    std::string_view rest = text.substr(end);
    if (rest.starts_with('!')) {
      const char conversion = rest.size() > 1 ? rest[1] : ' ';
      std::string converted;
      if (conversion == 'r') {
        append_repr(value, converted);
      } else if (conversion == 's') {
        converted = on_.text_of(value);
      } else {
        throw Failure{concat("Unknown conversion specifier, got ", quote(rest.substr(1)))};
      }
      value = on_.string(std::move(converted));
      rest.remove_prefix(2);
    }
    if (!rest.empty() && rest.front() != ':') throw Failure{"expected ':' after conversion specifier"};
    const std::string spec = rest.empty() ? "" : run(rest.substr(1), depth + 1);
    return shown(on_, value, spec);
  }

  Value find(std::string_view name) {
    const size_t end = std::min(name.find_first_of(".["), name.size());
    Value value = first(name.substr(0, end));
    name.remove_prefix(end);
    while (!name.empty()) {
      if (name.front() == '.') {
        name.remove_prefix(1);
        const size_t stop = std::min(name.find_first_of(".["), name.size());
        value = on_.attribute(value, on_.string(std::string(name.substr(0, stop))));
        name.remove_prefix(stop);
      } else if (name.front() == '[') {
        const size_t stop = name.find(']');
        if (stop == std::string_view::npos) throw Failure{"Missing ']' in format string"};
        std::string_view key = name.substr(1, stop - 1);
        const bool number = !key.empty() && std::all_of(key.begin(), key.end(), is_digit);
        value = on_.item(value, number ? Value::of(*take_number(key, kMostWidth)) : on_.string(std::string(key)));
        name.remove_prefix(stop + 1);
      } else {
        throw Failure{"Only '.' or '[' may follow ']' in format field specifier"};
      }
    }
    return value;
  }

  Value first(std::string_view name) {
    if (name.empty() || is_digit(name.front())) {
      std::string_view digits = name;
      const bool automatic = name.empty();
      if (numbering_ && *numbering_ != automatic) {
        throw Failure{"cannot switch between manual and automatic field numbering"};
      }
      numbering_ = automatic;
      const auto index = static_cast<size_t>(automatic ? next_++ : *take_number(digits, kMostWidth));
      if (!digits.empty() || index >= arguments_.positional.size()) {
        throw Failure{concat("Replacement index ", index, " out of range for positional args tuple")};
      }
      return arguments_.positional[index];
    }
    for (const auto& [known, value] : arguments_.keywords) {
      if (known == name) return value;
    }
    throw Failure{concat("format needs the argument ", quote(name))};
  }

  Interpreter& on_;
  const Arguments& arguments_;
  std::optional<bool> numbering_;  // whether fields number themselves
  int64_t next_ = 0;
};

// "%s" and its relatives in one pattern.
class Percent {
 public:
  explicit Percent(const Value& values) : values_(values) {
    if (values.is(Kind::list) && values.list().kind == List::Kind::tuple) {
      rest_ = values.list().items;
    } else {
      rest_ = std::span(&values_, 1);
    }
    is_mapping_ = values.is(Kind::dict) || (values.is(Kind::list) && values.list().kind == List::Kind::list);
  }

  std::string run(std::string_view pattern) {
    std::string out;
    bool used_mapping = false;
    for (;;) {
      const size_t percent = std::min(pattern.find('%'), pattern.size());
      out += pattern.substr(0, percent);
      if (percent == pattern.size()) break;
      if (out.size() > kMostText) throw Failure{"formatting makes too much text"};
      pattern.remove_prefix(percent + 1);
      if (pattern.starts_with('(')) used_mapping = true;
      out += conversion(pattern);
    }
    if (!rest_.empty() && !used_mapping && !is_mapping_) {
      throw Failure{"not all arguments converted during string formatting"};
    }
    return out;
  }

 private:
  const Value& next() {
    if (rest_.empty()) throw Failure{"not enough arguments for format string"};
    const Value& value = rest_.front();
    rest_ = rest_.subspan(1);
    return value;
  }

  int64_t next_integer() {
    const Value& value = next();
    if (!value.is_integral()) throw Failure{"* wants int"};
    return value.integer();
  }

  std::string conversion(std::string_view& pattern) {
    const Value* named = nullptr;
    if (pattern.starts_with('(')) {
      const size_t end = pattern.find(')');
      if (end == std::string_view::npos) throw Failure{"incomplete format key"};
      if (!values_.is(Kind::dict)) throw Failure{"format requires a mapping"};
      const std::string_view key = pattern.substr(1, end - 1);
      named = values_.dict().find(key);
      if (named == nullptr) throw Failure{concat("formatting needs the key ", quote(key))};
      pattern.remove_prefix(end + 1);
    }
    Layout layout;
    bool zero = false;
    for (; !pattern.empty(); pattern.remove_prefix(1)) {
      const char flag = pattern.front();
      if (flag == '-') {
        layout.align = '<';
      } else if (flag == '+') {
        layout.sign = '+';
      } else if (flag == ' ') {
        if (layout.sign == '-') layout.sign = ' ';
      } else if (flag == '0') {
        zero = true;
      } else if (flag == '#') {
        layout.alternate = true;
      } else {
        break;
      }
    }
    const auto number = [&](int64_t most) -> int64_t {
      if (!pattern.starts_with('*')) return take_number(pattern, most).value_or(0);
      pattern.remove_prefix(1);
      const int64_t value = next_integer();
      if (value < 0) layout.align = '<';
      return bounded(value < 0 && value > -most ? -value : value, most);
    };
    layout.width = number(kMostWidth);
    if (pattern.starts_with('.')) {
      pattern.remove_prefix(1);
      layout.precision = number(kMostPrecision);
    }
    while (!pattern.empty() && (pattern.front() == 'h' || pattern.front() == 'l' || pattern.front() == 'L')) {
      pattern.remove_prefix(1);
    }
    if (pattern.empty()) throw Failure{"incomplete format"};
    layout.type = pattern.front();
    pattern.remove_prefix(1);
    if (layout.type == '%') return "%";
    const Value& value = named != nullptr ? *named : next();
    return convert(layout, zero, value);
  }

  static std::string convert(Layout layout, bool zero, const Value& value) {
    switch (layout.type) {
      case 's':
      case 'r': {
        std::string text;
        if (layout.type == 's') {
          append_string(value, text);
        } else {
          append_repr(value, text);
        }
        if (layout.precision) text = first_characters(text, *layout.precision);
        return laid_out(layout, "", std::move(text), layout.align == 0 ? '>' : layout.align);
      }
      case 'c':
        if (value.is_integral())
          return laid_out(layout, "", character(value.integer()), layout.align == 0 ? '>' : layout.align);
        if (!value.is_string() || value.text().characters() != 1) throw Failure{"%c requires int or char"};
        return laid_out(layout, "", value.bytes(), layout.align == 0 ? '>' : layout.align);
      default: break;
    }
    if (zero && layout.align == 0) {
      layout.align = '=';
      layout.fill.assign(1, '0');
    }
    value.require_defined();
    const bool integral = std::string_view("diuoxX").find(layout.type) != std::string_view::npos;
    if (!integral && std::string_view("eEfFgG").find(layout.type) == std::string_view::npos) {
      throw Failure{concat("unsupported format character '", quote(std::string(1, layout.type)), "'")};
    }
    if (!value.is_number()) throw Failure{concat("a number is required, not ", type_name(value))};
    if (!integral) return show_real(layout, value.real());
    if (value.is(Kind::real)) {
      const bool truncates = layout.type == 'd' || layout.type == 'i' || layout.type == 'u';
      if (!truncates || !(std::abs(value.real()) < 0x1p63)) throw Failure{"an integer is required, not float"};
      return show_digits(layout, static_cast<int64_t>(value.real()));
    }
    return show_digits(layout, value.integer());
  }

  // In this style a precision is a least number of digits.
  static std::string show_digits(Layout layout, int64_t value) {
    const int64_t least = layout.precision.value_or(0);
    layout.precision.reset();
    const unsigned base = layout.type == 'o' ? 8 : layout.type == 'x' || layout.type == 'X' ? 16 : 10;
    std::string digits = print_integer(magnitude_of(value), base, layout.type == 'X');
    if (std::ssize(digits) < least) digits.insert(0, static_cast<size_t>(least) - digits.size(), '0');
    const std::string prefix = layout.alternate && base != 10 ? std::string{'0', layout.type} : "";
    return show_number(layout, value < 0, prefix, std::move(digits));
  }

  Value values_;
  std::span<const Value> rest_;
  bool is_mapping_;
};

}  // namespace

std::string format_percent(std::string_view pattern, const Value& values) { return Percent(values).run(pattern); }

std::string format_braces(Interpreter& on, std::string_view pattern, const Arguments& arguments) {
  return Braces(on, arguments).run(pattern, 0);
}

}  // namespace elapid::jinja
