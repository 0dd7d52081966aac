#include "elapid/text/jinja/builtins.h"

#include "elapid/core/error.h"
#include "elapid/io/json.h"
#include "elapid/text/jinja/interpreter.h"
#include "elapid/text/jinja/strings.h"
#include "elapid/text/unicode.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <unordered_set>

namespace elapid::jinja {
namespace {

using Kind = Value::Kind;

int64_t integer_of(const Value& value) {
  value.require_defined();
  if (!value.is_integral())
    throw Failure{concat("'", type_name(value), "' object cannot be interpreted as an integer")};
  return value.integer();
}

// A value that a test or a filter compares with: its work is the caller's.
bool equals(Interpreter& on, const Value& a, const Value& b) {
  on.spend(std::min(extent_of(a).weight, extent_of(b).weight));
  return equal(a, b);
}

bool orders(Interpreter& on, const Value& a, const Value& b) {
  on.spend(std::min(extent_of(a).weight, extent_of(b).weight));
  return less(a, b);
}

// --- Generators

// Items of a source that a function changes and lets through.
class Mapped final : public Generator {
 public:
  Mapped(Interpreter& on, const Value& over, std::function<bool(Value&)> step)
      : on_(on), source_(over), step_(std::move(step)) {}
  std::optional<Value> next() override {
    while (std::optional<Value> item = source_.next()) {
      on_.spend(1);
      if (step_(*item)) return item;
    }
    return {};
  }

 private:
  Interpreter& on_;
  Source source_;
  std::function<bool(Value&)> step_;
};

// `arguments`: what else the function holds. Generators of generators nest like any values.
Value generate(Interpreter& on, const Value& over, std::function<bool(Value&)> step, const Arguments& arguments = {}) {
  Source::require_iterable(over);
  auto* const made = on.heap().make<Mapped>(on, over, std::move(step));
  made->extent.add(over);
  for (const Value& value : arguments.positional) made->extent.add(value);
  for (const auto& [name, value] : arguments.keywords) made->extent.add(value);
  return Value::of(static_cast<Generator*>(made));
}

Value all_of(Interpreter& on, const Value& over) {
  return generate(on, over, [](Value&) { return true; });
}

// --- Attributes by path: "a.b.0"

using Path = std::vector<Value>;

Path path_of(Interpreter& on, const Value& attribute) {
  if (attribute.is_none()) return {};
  if (!attribute.is_string()) return {attribute};
  Path path;
  std::string_view rest = attribute.bytes();
  for (;;) {
    const size_t dot = std::min(rest.find('.'), rest.size());
    const std::string_view part = rest.substr(0, dot);
    const bool number =
        !part.empty() && part.size() < 19 && part.find_first_not_of("0123456789") == std::string_view::npos;
    path.push_back(number ? Value::of(static_cast<int64_t>(std::stoll(std::string(part))))
                          : on.string(std::string(part)));
    if (dot == rest.size()) return path;
    rest.remove_prefix(dot + 1);
  }
}

Value follow(Interpreter& on, const Path& path, Value from, const Value* otherwise = nullptr) {
  for (const Value& part : path) {
    from = on.item(from, part);
    if (from.is_undefined() && otherwise != nullptr && !otherwise->is_none()) from = *otherwise;
  }
  return from;
}

Value without_case(Interpreter& on, const Value& value) {
  if (!value.is_string()) return value;
  on.spend_bytes(value.bytes().size());
  return on.string(lower(value.bytes()));
}

// --- Filters

Value filter_abs(Interpreter& /*on*/, const Value& value, const Arguments& /*arguments*/) {
  value.require_defined();
  if (value.is(Kind::real)) return Value::of(std::abs(value.real()));
  if (!value.is_integral()) throw Failure{concat("bad operand type for abs(): '", type_name(value), "'")};
  return value.integer() < 0 ? negated(value) : Value::of(value.integer());
}

Value filter_attr(Interpreter& on, const Value& value, const Arguments& arguments) {
  const Bound bound("attr", arguments, {"name"}, 1);
  if (value.is(Kind::dict) && find_method(value, bound.string(0, "")) == nullptr) {
    return Value::undefined(concat("'dict object' has no attribute ", quote(bound.string(0, ""))));
  }
  return on.attribute(value, bound[0]);
}

Value filter_batch(Interpreter& on, const Value& value, const Arguments& arguments) {
  const Bound bound("batch", arguments, {"linecount", "fill_with"}, 1);
  const int64_t count = integer_of(bound[0]);
  std::vector<Value> batches, batch;
  const auto close = [&] {
    batches.push_back(on.heap().list(std::move(batch)));
    batch.clear();
  };
  Source::require_iterable(value);
  Source source(value);
  while (std::optional<Value> item = source.next()) {
    on.spend(1);
    if (std::ssize(batch) == count) close();
    batch.push_back(std::move(*item));
  }
  if (!batch.empty() && !bound.absent(1)) {
    on.heap().charge(std::max<int64_t>(0, count - std::ssize(batch)) * static_cast<int64_t>(sizeof(Value)));
    while (std::ssize(batch) < count) batch.push_back(bound[1]);
  }
  if (!batch.empty()) close();
  return all_of(on, on.heap().list(std::move(batches)));
}

// What str() makes of it; text marked as safe stays so.
Value as_text(Interpreter& on, const Value& value) { return value.is_string() ? value : on.string(on.text_of(value)); }

template <std::string (*change)(std::string_view)>
Value filter_text(Interpreter& on, const Value& value, const Arguments& arguments) {
  const Bound bound("filter", arguments, {});
  const Value text = as_text(on, value);
  return on.string(change(text.bytes()), text.text().markup());
}

// Jinja's own title case: words begin after white space, hyphens and opening brackets.
std::string filter_title_text(std::string_view text) {
  std::string out;
  size_t begin = 0;
  const auto word = [&](size_t end) {
    if (end == begin) return;
    size_t first = begin + 1;
    while (first < end && (static_cast<unsigned char>(text[first]) & 0xC0) == 0x80) ++first;
    out += upper(text.substr(begin, first - begin));
    out += lower(text.substr(first, end - first));
  };
  const auto separates = [&](size_t at) {
    const char c = text[at];
    return c == '-' || c == '(' || c == '{' || c == '[' || c == '<' || strip(text.substr(at, 1)).empty();
  };
  for (size_t at = 0; at < text.size(); ++at) {
    if ((static_cast<unsigned char>(text[at]) & 0x80) != 0 || !separates(at)) continue;
    word(at);
    out += text[at];
    begin = at + 1;
  }
  word(text.size());
  return out;
}

int64_t bounded_width(int64_t width) {
  constexpr int64_t kMost = int64_t{1} << 24;
  if (width > kMost) throw Failure{concat("a width must be at most ", kMost, ", got ", width)};
  return width;
}

enum class Side : uint8_t { left, right, both };

// The text among so many fill characters that it is `width` long.
std::string padded(const Value& text, int64_t width, std::string_view fill, Side text_on) {
  const int64_t missing = std::max<int64_t>(0, bounded_width(width) - text.text().characters());
  // Python's center() puts the odd one left of an odd width.
  const int64_t left = text_on == Side::left    ? 0
                       : text_on == Side::right ? missing
                                                : missing / 2 + (missing & width & 1);
  std::string out;
  for (int64_t i = 0; i < left; ++i) out += fill;
  out += text.bytes();
  for (int64_t i = left; i < missing; ++i) out += fill;
  return out;
}

Value filter_center(Interpreter& on, const Value& value, const Arguments& arguments) {
  const Bound bound("center", arguments, {"width"});
  const Value text = as_text(on, value);
  return on.string(padded(text, bound.integer(0, 80), " ", Side::both), text.text().markup());
}

Value filter_default(Interpreter& /*on*/, const Value& value, const Arguments& arguments) {
  const Bound bound("default", arguments, {"default_value", "boolean"});
  if (!value.is_undefined() && !(bound.flag(1, false) && !truthy(value))) return value;
  static const Value empty = Value::of(std::make_shared<const Text>(std::string()));
  return bound.has(0) ? bound[0] : empty;
}

std::vector<Value> sorted(Interpreter& on, std::vector<Value> items, bool reverse,
                          const std::function<Value(const Value&)>& key_of) {
  std::vector<std::pair<Value, size_t>> keys;
  for (size_t i = 0; i < items.size(); ++i) keys.emplace_back(key_of(items[i]), i);
  on.heap().charge(static_cast<int64_t>(keys.size() * sizeof(keys[0])));
  std::stable_sort(keys.begin(), keys.end(), [&](const auto& a, const auto& b) {
    return reverse ? orders(on, b.first, a.first) : orders(on, a.first, b.first);
  });
  std::vector<Value> out;
  for (const auto& [key, i] : keys) out.push_back(items[i]);
  return out;
}

std::vector<Value> pairs_of(Interpreter& on, const Value& dict, const char* what) {
  dict.require_defined();
  if (!dict.is(Kind::dict)) throw Failure{concat(what, " needs a mapping, got '", type_name(dict), "'")};
  std::vector<Value> pairs;
  for (const Dict::Entry& entry : dict.dict().entries()) pairs.push_back(on.heap().tuple({entry.key, entry.value}));
  on.spend(std::ssize(pairs));
  return pairs;
}

Value filter_dictsort(Interpreter& on, const Value& value, const Arguments& arguments) {
  const Bound bound("dictsort", arguments, {"case_sensitive", "by", "reverse"});
  const bool exact = bound.flag(0, false);
  const std::string_view by = bound.string(1, "key");
  if (by != "key" && by != "value") throw Failure{"You can only sort by either \"key\" or \"value\""};
  const size_t at = by == "key" ? 0 : 1;
  return on.heap().list(sorted(on, pairs_of(on, value, "dictsort"), bound.flag(2, false), [&](const Value& pair) {
    const Value& key = pair.list().items[at];
    return exact ? key : without_case(on, key);
  }));
}

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '\'': out += "&#39;"; break;
      case '"': out += "&#34;"; break;
      default: out += c;
    }
  }
  return out;
}

Value filter_escape(Interpreter& on, const Value& value, const Arguments& /*arguments*/) {
  if (value.is_string() && value.text().markup()) return value;
  return on.string(escaped(on.text_of(value)), true);
}

Value filter_forceescape(Interpreter& on, const Value& value, const Arguments& /*arguments*/) {
  return on.string(escaped(on.text_of(value)), true);
}

Value filter_safe(Interpreter& on, const Value& value, const Arguments& /*arguments*/) {
  return on.string(on.text_of(value), true);
}

Value filter_first(Interpreter& on, const Value& value, const Arguments& /*arguments*/) {
  on.spend(1);
  Source::require_iterable(value);
  Source source(value);
  return source.next().value_or(Value::undefined("No first item, sequence was empty."));
}

// Python's reversed().
Value reversed(Interpreter& on, const Value& value) {
  if (value.is(Kind::generator)) throw Failure{"'generator' object is not reversible"};
  std::vector<Value> items = elements(value, on.heap());
  on.spend(std::ssize(items));
  std::reverse(items.begin(), items.end());
  return on.heap().list(std::move(items));
}

Value filter_last(Interpreter& on, const Value& value, const Arguments& arguments) {
  if (value.is(Kind::list)) {
    const std::vector<Value>& items = value.list().items;
    return items.empty() ? Value::undefined("No last item, sequence was empty.") : items.back();
  }
  return filter_first(on, reversed(on, value), arguments);
}

Value filter_reverse(Interpreter& on, const Value& value, const Arguments& /*arguments*/) {
  if (value.is_string()) return slice(on, value, Value::none(), Value::none(), Value::of(int64_t{-1}));
  if (value.is(Kind::generator)) return reversed(on, on.heap().list(elements(value, on.heap())));
  return all_of(on, reversed(on, value));
}

std::optional<int64_t> parse_integer(std::string_view text, int64_t base) {
  text = strip(text);
  const bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.remove_prefix(1);
  const auto prefixed = [&](char letter) { return text.size() > 2 && text[0] == '0' && (text[1] | 0x20) == letter; };
  constexpr std::array<std::pair<char, int64_t>, 3> kPrefixes = {{{'x', 16}, {'o', 8}, {'b', 2}}};
  bool was_prefixed = false;
  for (const auto& [letter, of] : kPrefixes) {
    if ((base != of && base != 0) || !prefixed(letter)) continue;
    base = of;
    text.remove_prefix(2);
    was_prefixed = true;
    break;
  }
  if (base == 0) base = 10;
  if (was_prefixed && text.starts_with('_')) text.remove_prefix(1);
  if (text.empty() || text.front() == '_' || text.back() == '_' || text.find("__") != std::string_view::npos) return {};
  int64_t value = 0;
  for (const char c : text) {
    if (c == '_') continue;
    const int64_t digit = c >= '0' && c <= '9'                     ? c - '0'
                          : (c | 0x20) >= 'a' && (c | 0x20) <= 'z' ? (c | 0x20) - 'a' + 10
                                                                   : 99;
    if (digit >= base) return {};
    if (__builtin_mul_overflow(value, base, &value) || __builtin_sub_overflow(value, digit, &value)) {
      throw Failure{concat("integers must fit 64 bits, got ", quote(text))};
    }
  }
  if (!negative && value == std::numeric_limits<int64_t>::min()) throw Failure{"integers must fit 64 bits"};
  return negative ? value : -value;
}

std::optional<double> parse_real(std::string_view from) {
  const std::string_view stripped = strip(from);
  const auto digit_at = [&](size_t i) { return i < stripped.size() && stripped[i] >= '0' && stripped[i] <= '9'; };
  std::string text;
  for (size_t i = 0; i < stripped.size(); ++i) {
    const char c = stripped[i];
    if (c == '_' && i > 0 && digit_at(i - 1) && digit_at(i + 1)) continue;
    text += static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
  }
  std::string_view rest = text;
  const bool negative = rest.starts_with('-');
  if (negative || rest.starts_with('+')) rest.remove_prefix(1);
  double value = 0;
  if (rest == "inf" || rest == "infinity") {
    value = std::numeric_limits<double>::infinity();
  } else if (rest == "nan") {
    value = std::numeric_limits<double>::quiet_NaN();
  } else {
    if (rest.empty() || rest.find_first_not_of("0123456789.e+-") != std::string_view::npos) return {};
    const std::string plain(rest);
    char* end = nullptr;
    value = std::strtod(plain.c_str(), &end);  // overflow is infinite, as in Python
    if (end != plain.c_str() + plain.size() || plain.front() == '+' || plain.front() == '-') return {};
  }
  return negative ? -value : value;
}

Value integer_from(double value) {
  if (std::isnan(value)) throw Failure{"cannot convert float NaN to integer"};
  if (!(std::abs(value) < 0x1p63)) throw Failure{"integers must fit 64 bits"};
  return Value::of(static_cast<int64_t>(value));
}

Value filter_int(Interpreter& /*on*/, const Value& value, const Arguments& arguments) {
  const Bound bound("int", arguments, {"default", "base"});
  const auto otherwise = [&] { return bound.has(0) ? bound[0] : Value::of(int64_t{0}); };
  value.require_defined();
  std::optional<double> real;
  if (value.is_string()) {
    if (const auto parsed = parse_integer(value.bytes(), bound.integer(1, 10))) return Value::of(*parsed);
    real = parse_real(value.bytes());
  } else if (value.is_number()) {
    if (value.is_integral()) return Value::of(value.integer());
    real = value.real();
    if (std::isinf(*real)) throw Failure{"cannot convert float infinity to integer"};
  }
  if (!real || !std::isfinite(*real)) return otherwise();
  return integer_from(*real);
}

Value filter_float(Interpreter& /*on*/, const Value& value, const Arguments& arguments) {
  const Bound bound("float", arguments, {"default"});
  value.require_defined();
  if (value.is_number()) return Value::of(value.real());
  if (value.is_string()) {
    if (const auto parsed = parse_real(value.bytes())) return Value::of(*parsed);
  }
  return bound.has(0) ? bound[0] : Value::of(0.0);
}

Value named(Interpreter& on, const Arguments& arguments) {
  auto* const dict = on.heap().make<Dict>();
  for (const auto& [name, value] : arguments.keywords) on.heap().set(*dict, on.string(name), value);
  return Value::of(dict);
}

Value filter_format(Interpreter& on, const Value& value, const Arguments& arguments) {
  if (!arguments.positional.empty() && !arguments.keywords.empty()) {
    throw Failure{"can't handle positional and keyword arguments at the same time"};
  }
  const Value values = arguments.keywords.empty() ? on.heap().tuple(arguments.positional) : named(on, arguments);
  return on.string(format_percent(as_text(on, value).bytes(), values));
}

Value filter_indent(Interpreter& on, const Value& value, const Arguments& arguments) {
  const Bound bound("indent", arguments, {"width", "first", "blank"});
  value.require_defined();
  if (!value.is_string()) throw Failure{concat("indent needs a string, got '", type_name(value), "'")};
  std::string indentation;
  if (bound.has(0) && bound[0].is_string()) {
    indentation = bound[0].bytes();
  } else {
    indentation.assign(static_cast<size_t>(bounded_width(std::max<int64_t>(0, bound.integer(0, 4)))), ' ');
  }
  const bool first = bound.flag(1, false), blank = bound.flag(2, false);
  const std::string text = value.bytes() + "\n";
  const std::vector<std::string_view> lines = split_lines(text, false);
  on.spend_bytes(lines.size() * indentation.size());
  on.heap().charge(static_cast<int64_t>(lines.size() * indentation.size()));
  std::string out = first ? indentation : "";
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out += '\n';
    if (i > 0 && (blank || !lines[i].empty())) out += indentation;
    out += lines[i];
  }
  on.heap().charge(-static_cast<int64_t>(lines.size() * indentation.size()));
  return on.string(std::move(out), value.text().markup());
}

Value filter_items(Interpreter& on, const Value& value, const Arguments& /*arguments*/) {
  if (value.is_undefined()) return all_of(on, value);
  return all_of(on, on.heap().list(pairs_of(on, value, "items")));
}

std::string joined(Interpreter& on, std::string_view separator, const Value& items, bool any_type,
                   const Path* path = nullptr) {
  Source::require_iterable(items);
  Source source(items);
  std::string out;
  bool first = true;
  while (std::optional<Value> item = source.next()) {
    on.spend(1);
    if (path != nullptr) item = follow(on, *path, std::move(*item));
    if (!first) out += separator;
    first = false;
    if (!any_type && !item->is_string()) {
      throw Failure{concat("sequence item: expected str instance, ", type_name(*item), " found")};
    }
    const size_t before = out.size();
    out += on.text_of(*item);
    on.spend_bytes(out.size() - before + separator.size());
    if (out.size() > (size_t{1} << 28)) throw Failure{"join makes too much text"};
  }
  return out;
}

Value filter_join(Interpreter& on, const Value& value, const Arguments& arguments) {
  const Bound bound("join", arguments, {"d", "attribute"});
  const std::string separator = bound.has(0) ? on.text_of(bound[0]) : "";
  const Path path = bound.absent(1) ? Path() : path_of(on, bound[1]);
  return on.string(joined(on, separator, value, true, &path));
}

Value filter_length(Interpreter& /*on*/, const Value& value, const Arguments& /*arguments*/) {
  const auto size = size_of(value);
  if (!size) throw Failure{concat("object of type '", type_name(value), "' has no len()")};
  return Value::of(*size);
}

Value filter_list(Interpreter& on, const Value& value, const Arguments& /*arguments*/) {
  std::vector<Value> items = elements(value, on.heap());
  on.spend(std::ssize(items));
  return on.heap().list(std::move(items));
}

Value filter_map(Interpreter& on, const Value& value, const Arguments& arguments) {
  if (!truthy(value)) return all_of(on, Value());
  if (arguments.positional.empty() && !arguments.keywords.empty()) {
    const Bound bound("map", arguments, {"attribute", "default"}, 1);
    const Value otherwise = bound.has(1) ? bound[1] : Value::none();
    const auto step = [&on, path = path_of(on, bound[0]), otherwise](Value& item) {
      item = follow(on, path, std::move(item), &otherwise);
      return true;
    };
    return generate(on, value, step, arguments);
  }
  if (arguments.positional.empty()) throw Failure{"map requires a filter argument"};
  if (!arguments.positional[0].is_string()) throw Failure{"map requires a filter's name"};
  const std::string name = arguments.positional[0].bytes();
  Arguments rest = arguments;
  rest.positional.erase(rest.positional.begin());
  const auto step = [&on, filter = find_filter(name), name, rest](Value& item) {
    item = on.apply(filter, name, item, rest);
    return true;
  };
  return generate(on, value, step, arguments);
}

Value extreme(Interpreter& on, const Value& value, const Arguments& arguments, bool largest) {
  const Bound bound(largest ? "max" : "min", arguments, {"case_sensitive", "attribute"});
  const Path path = bound.absent(1) ? Path() : path_of(on, bound[1]);
  const auto key_of = [&](const Value& item) {
    const Value key = follow(on, path, item);
    return bound.flag(0, false) ? key : without_case(on, key);
  };
  Source::require_iterable(value);
  Source source(value);
  std::optional<Value> best = source.next();
  if (!best) return Value::undefined("No aggregated item, sequence was empty.");
  Value best_key = key_of(*best);
  while (std::optional<Value> item = source.next()) {
    on.spend(1);
    Value key = key_of(*item);
    if (!(largest ? orders(on, best_key, key) : orders(on, key, best_key))) continue;
    best = std::move(item);
    best_key = std::move(key);
  }
  return *best;
}

Value filter_max(Interpreter& on, const Value& value, const Arguments& arguments) {
  return extreme(on, value, arguments, true);
}
Value filter_min(Interpreter& on, const Value& value, const Arguments& arguments) {
  return extreme(on, value, arguments, false);
}

// select, reject, selectattr, rejectattr.
template <bool wanted, bool by_attribute>
Value filter_select(Interpreter& on, const Value& value, const Arguments& arguments) {
  if (!truthy(value)) return all_of(on, Value());
  Arguments rest = arguments;
  const auto take = [&] {
    Value first = rest.positional.front();
    rest.positional.erase(rest.positional.begin());
    return first;
  };
  Path path;
  if (by_attribute) {
    if (rest.positional.empty()) throw Failure{"Missing parameter for attribute name"};
    path = path_of(on, take());
  }
  if (rest.positional.empty()) {
    return generate(on, value, [&on, path](Value& item) { return truthy(follow(on, path, item)) == wanted; });
  }
  const Value name_value = take();
  if (!name_value.is_string()) throw Failure{"a test's name must be a string"};
  const std::string name = name_value.bytes();
  const auto step = [&on, path, test = find_test(name), name, rest](Value& item) {
    return on.apply(test, name, follow(on, path, item), rest) == wanted;
  };
  return generate(on, value, step, arguments);
}

Value filter_replace(Interpreter& on, const Value& value, const Arguments& arguments);

Value filter_round(Interpreter& /*on*/, const Value& value, const Arguments& arguments) {
  const Bound bound("round", arguments, {"precision", "method"});
  const int64_t precision = bound.integer(0, 0);
  const std::string_view method = bound.string(1, "common");
  if (method != "common" && method != "ceil" && method != "floor") {
    throw Failure{"method must be common, ceil or floor"};
  }
  value.require_defined();
  if (!value.is_number()) throw Failure{concat("type ", type_name(value), " doesn't define __round__ method")};
  if (std::abs(precision) > 300) throw Failure{concat("a precision must be at most 300, got ", precision)};
  const double real = value.real();
  const double scale = std::pow(10.0, static_cast<double>(precision));
  if (method != "common") {
    const double scaled = real * scale;
    if (!std::isfinite(scaled)) throw Failure{"cannot convert float infinity or NaN to integer"};
    return Value::of((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale);
  }
  if (value.is_integral() && precision >= 0) return Value::of(value.integer());
  if (!std::isfinite(real)) return value;
  if (precision < 0) {
    const double rounded = std::nearbyint(real * scale) / scale;
    return value.is_integral() ? integer_from(rounded) : Value::of(rounded);
  }
  // The digits of the exact value, to the nearest and ties to even, as Python rounds.
  std::array<char, 700> digits;
  std::snprintf(digits.data(), digits.size(), "%.*f", static_cast<int>(precision), real);
  return Value::of(std::strtod(digits.data(), nullptr));
}

Value filter_slice(Interpreter& on, const Value& value, const Arguments& arguments) {
  const Bound bound("slice", arguments, {"slices", "fill_with"}, 1);
  const std::vector<Value> items = elements(value, on.heap());
  const int64_t count = integer_of(bound[0]), size = std::ssize(items);
  if (count == 0) throw Failure{"integer division or modulo by zero"};
  if (count < 0) return all_of(on, Value());
  on.spend(count + size);
  std::vector<Value> slices;
  int64_t begin = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t end = begin + size / count + (i < size % count ? 1 : 0);
    std::vector<Value> part(items.begin() + begin, items.begin() + end);
    if (!bound.absent(1) && i >= size % count) part.push_back(bound[1]);
    slices.push_back(on.heap().list(std::move(part)));
    begin = end;
  }
  return all_of(on, on.heap().list(std::move(slices)));
}

Value filter_sort(Interpreter& on, const Value& value, const Arguments& arguments) {
  const Bound bound("sort", arguments, {"reverse", "case_sensitive", "attribute"});
  std::vector<Path> paths;
  if (!bound.absent(2) && bound[2].is_string()) {
    std::string_view rest = bound[2].bytes();
    for (;;) {
      const size_t comma = std::min(rest.find(','), rest.size());
      paths.push_back(path_of(on, on.string(std::string(rest.substr(0, comma)))));
      if (comma == rest.size()) break;
      rest.remove_prefix(comma + 1);
    }
  } else {
    paths.push_back(bound.has(2) ? path_of(on, bound[2]) : Path());
  }
  return on.heap().list(sorted(on, elements(value, on.heap()), bound.flag(0, false), [&](const Value& item) {
    std::vector<Value> keys;
    for (const Path& path : paths) {
      const Value key = follow(on, path, item);
      keys.push_back(bound.flag(1, false) ? key : without_case(on, key));
    }
    return on.heap().list(std::move(keys));
  }));
}

Value filter_string(Interpreter& on, const Value& value, const Arguments& /*arguments*/) { return as_text(on, value); }

Value filter_sum(Interpreter& on, const Value& value, const Arguments& arguments) {
  const Bound bound("sum", arguments, {"attribute", "start"});
  const Path path = bound.absent(0) ? Path() : path_of(on, bound[0]);
  Value total = bound.has(1) ? bound[1] : Value::of(int64_t{0});
  if (total.is_string()) throw Failure{"sum() can't sum strings [use ''.join(seq) instead]"};
  Source::require_iterable(value);
  Source source(value);
  while (std::optional<Value> item = source.next()) {
    on.spend(1);
    total = arithmetic(on, Arithmetic::add, total, follow(on, path, std::move(*item)));
  }
  return total;
}

Value filter_tojson(Interpreter& on, const Value& value, const Arguments& arguments) {
  const Bound bound("tojson", arguments, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ensure_ascii = bound.flag(0, false);
  style.sort_keys = bound.flag(3, false);
  if (!bound.absent(1)) {
    if (bound[1].is_string()) {
      style.indent = bound[1].bytes();
    } else {
      style.indent = std::string(static_cast<size_t>(bounded_width(std::max<int64_t>(0, integer_of(bound[1])))), ' ');
    }
    constexpr size_t kMostIndent = 1024;
    if (style.indent->size() > kMostIndent)
      throw Failure{concat("an indentation must be at most ", kMostIndent, " long")};
    style.item_separator = ",";
  }
  if (!bound.absent(2)) {
    const std::vector<Value> separators = elements(bound[2], on.heap());
    if (separators.size() != 2 || !separators[0].is_string() || !separators[1].is_string()) {
      throw Failure{"separators must be two strings"};
    }
    style.item_separator = separators[0].bytes();
    style.key_separator = separators[1].bytes();
  }
  on.spend(extent_of(value).weight);
  return on.string(to_json(value, style));
}

Value filter_trim(Interpreter& on, const Value& value, const Arguments& arguments) {
  const Bound bound("trim", arguments, {"chars"});
  const Value text = as_text(on, value);
  const std::string_view bytes = text.bytes();
  const std::string_view kept =
      bound.absent(0) ? strip(bytes) : strip_left(strip_right(bytes, bound.string(0, "")), bound.string(0, ""));
  return on.string(std::string(kept), text.text().markup());
}

Value filter_truncate(Interpreter& on, const Value& value, const Arguments& arguments) {
  const Bound bound("truncate", arguments, {"length", "killwords", "end", "leeway"});
  if (!value.is_string()) throw Failure{concat("truncate needs a string, got '", type_name(value), "'")};
  const int64_t length = bound.integer(0, 255), leeway = bound.absent(3) ? 5 : bound.integer(3, 5);
  const Value end = bound.has(2) ? bound[2] : on.string("...");
  if (!end.is_string() || length < end.text().characters() || leeway < 0) {
    throw Failure{"truncate: the length must be at least the end's, and the leeway at least 0"};
  }
  if (value.text().characters() - leeway <= length) return value;
  std::string kept = value.bytes().substr(0, value.text().offset(length - end.text().characters()));
  if (!bound.flag(1, false)) kept.resize(std::min(kept.rfind(' '), kept.size()));
  return on.string(kept + end.bytes());
}

Value filter_unique(Interpreter& on, const Value& value, const Arguments& arguments) {
  const Bound bound("unique", arguments, {"case_sensitive", "attribute"});
  const Path path = bound.absent(1) ? Path() : path_of(on, bound[1]);
  auto* const seen = on.heap().make<Dict>();
  return generate(on, value, [&on, path, seen, exact = bound.flag(0, false)](Value& item) {
    Value key = follow(on, path, item);
    if (!exact) key = without_case(on, key);
    if (seen->find(key) != nullptr) return false;
    on.heap().set(*seen, key, Value::none());
    return true;
  });
}

Value filter_wordcount(Interpreter& on, const Value& value, const Arguments& /*arguments*/) {
  const Value text = as_text(on, value);
  int64_t words = 0;
  bool inside = false;
  for (size_t at = 0; at < text.bytes().size();) {
    const unicode::Decoded next = unicode::decode(text.bytes().data() + at);
    const bool word =
        unicode::is_numeric(next.code) || next.code == '_' || unicode::in_class(unicode::category(next.code), "L");
    words += word && !inside;
    inside = word;
    at += static_cast<size_t>(next.length);
  }
  return Value::of(words);
}

constexpr auto kFilters = std::to_array<Filter>({
    {"abs", filter_abs},
    {"attr", filter_attr},
    {"batch", filter_batch},
    {"capitalize", filter_text<capitalize>},
    {"center", filter_center},
    {"count", filter_length},
    {"d", filter_default},
    {"default", filter_default},
    {"dictsort", filter_dictsort},
    {"e", filter_escape},
    {"escape", filter_escape},
    {"first", filter_first},
    {"float", filter_float},
    {"forceescape", filter_forceescape},
    {"format", filter_format},
    {"indent", filter_indent},
    {"int", filter_int},
    {"items", filter_items},
    {"join", filter_join},
    {"last", filter_last},
    {"length", filter_length},
    {"list", filter_list},
    {"lower", filter_text<lower>},
    {"map", filter_map},
    {"max", filter_max},
    {"min", filter_min},
    {"reject", filter_select<false, false>},
    {"rejectattr", filter_select<false, true>},
    {"replace", filter_replace},
    {"reverse", filter_reverse},
    {"round", filter_round},
    {"safe", filter_safe},
    {"select", filter_select<true, false>},
    {"selectattr", filter_select<true, true>},
    {"slice", filter_slice},
    {"sort", filter_sort},
    {"string", filter_string},
    {"sum", filter_sum},
    {"title", filter_text<filter_title_text>},
    {"tojson", filter_tojson},
    {"trim", filter_trim},
    {"truncate", filter_truncate},
    {"unique", filter_unique},
    {"upper", filter_text<upper>},
    {"wordcount", filter_wordcount},
});

// --- Tests

template <Comparison comparison>
bool test_compare(Interpreter& on, const Value& value, const Arguments& arguments) {
  const Bound bound("test", arguments, {"other"}, 1);
  const Value& other = bound[0];
  switch (comparison) {
    case Comparison::eq: return equals(on, value, other);
    case Comparison::ne: return !equals(on, value, other);
    case Comparison::lt: return orders(on, value, other);
    case Comparison::gt: return orders(on, other, value);
    case Comparison::le: return orders(on, value, other) || equals(on, value, other);
    case Comparison::ge: return orders(on, other, value) || equals(on, value, other);
    default: on.spend(extent_of(other).weight); return contains(other, value);
  }
}

template <Kind kind>
bool test_kind(Interpreter& /*on*/, const Value& value, const Arguments& /*arguments*/) {
  return value.is(kind);
}

template <bool wanted>
bool test_boolean(Interpreter& /*on*/, const Value& value, const Arguments& /*arguments*/) {
  return value.is(Kind::boolean) && value.boolean() == wanted;
}

template <int64_t remainder>
bool test_parity(Interpreter& on, const Value& value, const Arguments& /*arguments*/) {
  return equal(arithmetic(on, Arithmetic::modulo, value, Value::of(int64_t{2})), Value::of(remainder));
}

bool test_divisible(Interpreter& on, const Value& value, const Arguments& arguments) {
  const Bound bound("divisibleby", arguments, {"num"}, 1);
  return equal(arithmetic(on, Arithmetic::modulo, value, bound[0]), Value::of(int64_t{0}));
}

bool test_defined(Interpreter& /*on*/, const Value& value, const Arguments& /*arguments*/) {
  return !value.is_undefined();
}

bool test_number(Interpreter& /*on*/, const Value& value, const Arguments& /*arguments*/) { return value.is_number(); }

bool test_iterable(Interpreter& /*on*/, const Value& value, const Arguments& /*arguments*/) {
  return value.is(Kind::generator) || size_of(value).has_value();
}

bool test_sequence(Interpreter& /*on*/, const Value& value, const Arguments& /*arguments*/) {
  return size_of(value).has_value() && !(value.is(Kind::list) && !value.list().indexable());
}

bool test_callable(Interpreter& /*on*/, const Value& value, const Arguments& /*arguments*/) {
  auto* const special = value.other<Special>();
  return value.is_undefined() || (special != nullptr && special->callable());
}

bool test_same(Interpreter& on, const Value& value, const Arguments& arguments) {
  const Bound bound("sameas", arguments, {"other"}, 1);
  if (value.kind() != bound[0].kind()) return false;
  switch (value.kind()) {
    case Kind::undefined: return false;
    case Kind::none: return true;
    case Kind::boolean:
    case Kind::integer:
    case Kind::real:
    case Kind::string: return equals(on, value, bound[0]);
    default: return value.object() == bound[0].object();
  }
}

template <bool (*has)(std::string_view)>
bool test_text(Interpreter& on, const Value& value, const Arguments& /*arguments*/) {
  return has(as_text(on, value).bytes());
}

bool test_escaped(Interpreter& /*on*/, const Value& value, const Arguments& /*arguments*/) {
  return value.is_string() && value.text().markup();
}

bool test_filter(Interpreter& /*on*/, const Value& value, const Arguments& /*arguments*/) {
  return value.is_string() && find_filter(value.bytes()) != nullptr;
}

bool test_test(Interpreter& /*on*/, const Value& value, const Arguments& /*arguments*/) {
  return value.is_string() && find_test(value.bytes()) != nullptr;
}

constexpr auto kTests = std::to_array<Test>({
    {"odd", test_parity<1>},
    {"even", test_parity<0>},
    {"divisibleby", test_divisible},
    {"defined", test_defined},
    {"undefined", test_kind<Kind::undefined>},
    {"filter", test_filter},
    {"test", test_test},
    {"none", test_kind<Kind::none>},
    {"boolean", test_kind<Kind::boolean>},
    {"false", test_boolean<false>},
    {"true", test_boolean<true>},
    {"integer", test_kind<Kind::integer>},
    {"float", test_kind<Kind::real>},
    {"lower", test_text<is_lower>},
    {"upper", test_text<is_upper>},
    {"string", test_kind<Kind::string>},
    {"mapping", test_kind<Kind::dict>},
    {"number", test_number},
    {"sequence", test_sequence},
    {"iterable", test_iterable},
    {"callable", test_callable},
    {"sameas", test_same},
    {"escaped", test_escaped},
    {"in", test_compare<Comparison::in>},
    {"==", test_compare<Comparison::eq>},
    {"eq", test_compare<Comparison::eq>},
    {"equalto", test_compare<Comparison::eq>},
    {"!=", test_compare<Comparison::ne>},
    {"ne", test_compare<Comparison::ne>},
    {">", test_compare<Comparison::gt>},
    {"gt", test_compare<Comparison::gt>},
    {"greaterthan", test_compare<Comparison::gt>},
    {"ge", test_compare<Comparison::ge>},
    {">=", test_compare<Comparison::ge>},
    {"<", test_compare<Comparison::lt>},
    {"lt", test_compare<Comparison::lt>},
    {"lessthan", test_compare<Comparison::lt>},
    {"<=", test_compare<Comparison::le>},
    {"le", test_compare<Comparison::le>},
});

// --- Methods of strings. Those that return text keep its mark.

Value same_kind(Interpreter& on, const Value& self, std::string text) {
  return on.string(std::move(text), self.text().markup());
}

// An argument that becomes part of marked text.
std::string beside(const Value& self, const Value& argument) {
  argument.require_defined();
  if (!argument.is_string()) throw Failure{concat("must be str, not ", type_name(argument))};
  const bool escapes = self.text().markup() && !argument.text().markup();
  return escapes ? escaped(argument.bytes()) : argument.bytes();
}

template <std::string (*change)(std::string_view)>
Value string_change(Interpreter& on, const Value& self, const Arguments& arguments) {
  const Bound bound("str method", arguments, {});
  return same_kind(on, self, change(self.bytes()));
}

template <Side side>
Value string_strip(Interpreter& on, const Value& self, const Arguments& arguments) {
  const Bound bound("strip", arguments, {"chars"});
  std::string_view text = self.bytes();
  if (bound.absent(0)) {
    if (side != Side::right) text = strip_left(text);
    if (side != Side::left) text = strip_right(text);
  } else {
    const std::string_view set = bound.string(0, "");
    on.spend_bytes(text.size() * std::min<size_t>(set.size(), 64));
    if (side != Side::right) text = strip_left(text, set);
    if (side != Side::left) text = strip_right(text, set);
  }
  return same_kind(on, self, std::string(text));
}

// Runs of white space separate; at most `most` times, counted from the left or the right.
std::vector<std::string_view> split_space(std::string_view text, int64_t most, bool from_right) {
  std::vector<std::string_view> words;
  const auto is_space = [&](std::string_view character) { return strip(character).empty(); };
  text = from_right ? strip_right(text) : strip_left(text);
  while (!text.empty()) {
    if (most >= 0 && std::ssize(words) == most) {
      words.push_back(from_right ? strip_right(text) : text);
      break;
    }
    size_t edge = from_right ? text.size() : 0;
    if (from_right) {
      while (edge > 0) {
        const size_t before = unicode::last_character(text.substr(0, edge));
        if (is_space(text.substr(before, edge - before))) break;
        edge = before;
      }
      words.push_back(text.substr(edge));
      text = strip_right(text.substr(0, edge));
    } else {
      while (edge < text.size()) {
        const auto length = static_cast<size_t>(unicode::decode(text.data() + edge).length);
        if (is_space(text.substr(edge, length))) break;
        edge += length;
      }
      words.push_back(text.substr(0, edge));
      text = strip_left(text.substr(edge));
    }
  }
  if (from_right) std::reverse(words.begin(), words.end());
  return words;
}

std::vector<std::string_view> split_at(std::string_view text, std::string_view separator, int64_t most,
                                       bool from_right) {
  if (separator.empty()) throw Failure{"empty separator"};
  std::vector<std::string_view> parts;
  while (most < 0 || std::ssize(parts) < most) {
    const size_t found = from_right ? text.rfind(separator) : text.find(separator);
    if (found == std::string_view::npos) break;
    if (from_right) {
      parts.push_back(text.substr(found + separator.size()));
      text = text.substr(0, found);
    } else {
      parts.push_back(text.substr(0, found));
      text.remove_prefix(found + separator.size());
    }
  }
  parts.push_back(text);
  if (from_right) std::reverse(parts.begin(), parts.end());
  return parts;
}

Value strings(Interpreter& on, const Value& self, const std::vector<std::string_view>& parts) {
  std::vector<Value> items;
  on.spend(std::ssize(parts));
  for (const std::string_view part : parts) items.push_back(same_kind(on, self, std::string(part)));
  return on.heap().list(std::move(items));
}

template <bool from_right>
Value string_split(Interpreter& on, const Value& self, const Arguments& arguments) {
  const Bound bound("split", arguments, {"sep", "maxsplit"});
  const int64_t most = bound.integer(1, -1);
  if (bound.absent(0)) return strings(on, self, split_space(self.bytes(), most, from_right));
  return strings(on, self, split_at(self.bytes(), bound.string(0, ""), most, from_right));
}

Value string_splitlines(Interpreter& on, const Value& self, const Arguments& arguments) {
  const Bound bound("splitlines", arguments, {"keepends"});
  return strings(on, self, split_lines(self.bytes(), bound.flag(0, false)));
}

template <bool from_right>
Value string_partition(Interpreter& on, const Value& self, const Arguments& arguments) {
  const Bound bound("partition", arguments, {"sep"}, 1);
  const std::string_view text = self.bytes(), separator = bound.string(0, "");
  if (separator.empty()) throw Failure{"empty separator"};
  const size_t found = from_right ? text.rfind(separator) : text.find(separator);
  const auto part = [&](std::string_view of) { return same_kind(on, self, std::string(of)); };
  if (found == std::string_view::npos) {
    return from_right ? on.heap().tuple({part(""), part(""), self}) : on.heap().tuple({self, part(""), part("")});
  }
  return on.heap().tuple({part(text.substr(0, found)), part(separator), part(text.substr(found + separator.size()))});
}

// [begin, end) in bytes of what the optional bounds at `first` and after it leave of the text; nothing when they leave
// less than an empty text.
std::optional<std::pair<size_t, size_t>> window(const Value& self, const Bound& bound, size_t first) {
  const int64_t size = self.text().characters();
  const auto place = [&](size_t i, int64_t otherwise) {
    if (bound.absent(i)) return otherwise;
    const int64_t at = bound.integer(i, 0);
    return at < 0 ? std::max<int64_t>(0, at + size) : at;
  };
  const int64_t begin = place(first, 0), end = std::min(place(first + 1, size), size);
  if (begin > end) return {};
  return std::pair(self.text().offset(begin), self.text().offset(end));
}

template <bool at_end>
Value string_starts(Interpreter& /*on*/, const Value& self, const Arguments& arguments) {
  const Bound bound(at_end ? "endswith" : "startswith", arguments, {"prefix", "start", "end"}, 1);
  const auto range = window(self, bound, 1);
  if (!range) return Value::of(false);
  const std::string_view text = std::string_view(self.bytes()).substr(range->first, range->second - range->first);
  const auto fits = [&](const Value& with) {
    if (!with.is_string()) throw Failure{concat("first arg must be str or a tuple of str, not ", type_name(with))};
    return at_end ? text.ends_with(with.bytes()) : text.starts_with(with.bytes());
  };
  bound[0].require_defined();
  if (!bound[0].is(Kind::list) || bound[0].list().kind != List::Kind::tuple) return Value::of(fits(bound[0]));
  const std::vector<Value>& any = bound[0].list().items;
  return Value::of(std::any_of(any.begin(), any.end(), fits));
}

int64_t characters_in(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

template <bool from_right, bool must>
Value string_find(Interpreter& /*on*/, const Value& self, const Arguments& arguments) {
  const Bound bound("find", arguments, {"sub", "start", "end"}, 1);
  const std::string_view sub = bound.string(0, "");
  size_t found = std::string_view::npos;
  if (const auto range = window(self, bound, 1)) {
    const std::string_view text = std::string_view(self.bytes()).substr(range->first, range->second - range->first);
    found = from_right ? text.rfind(sub) : text.find(sub);
    if (found != std::string_view::npos) found += range->first;
  }
  if (found != std::string_view::npos) return Value::of(characters_in(std::string_view(self.bytes()).substr(0, found)));
  if (must) throw Failure{"substring not found"};
  return Value::of(int64_t{-1});
}

Value string_count(Interpreter& /*on*/, const Value& self, const Arguments& arguments) {
  const Bound bound("count", arguments, {"sub", "start", "end"}, 1);
  const std::string_view sub = bound.string(0, "");
  const auto range = window(self, bound, 1);
  if (!range) return Value::of(int64_t{0});
  const std::string_view text = std::string_view(self.bytes()).substr(range->first, range->second - range->first);
  if (sub.empty()) return Value::of(characters_in(text) + 1);
  int64_t count = 0;
  for (size_t at = text.find(sub); at != std::string_view::npos; at = text.find(sub, at + sub.size())) ++count;
  return Value::of(count);
}

std::string replaced(Interpreter& on, std::string_view text, std::string_view from, std::string_view to, int64_t most) {
  std::string out;
  const auto put = [&](std::string_view piece) {
    on.spend_bytes(piece.size());
    if (out.size() + piece.size() > (size_t{1} << 28)) throw Failure{"replace makes too much text"};
    out += piece;
  };
  if (from.empty()) {  // between all characters
    for (size_t at = 0; most != 0; --most) {
      on.spend(1);
      put(to);
      if (at == text.size()) return out;
      const auto length = static_cast<size_t>(unicode::decode(text.data() + at).length);
      put(text.substr(at, length));
      at += length;
      if (most == 1) text.remove_prefix(at), at = 0;
    }
    put(text);
    return out;
  }
  for (; most != 0; --most) {
    const size_t found = text.find(from);
    if (found == std::string_view::npos) break;
    on.spend(1);
    put(text.substr(0, found));
    put(to);
    text.remove_prefix(found + from.size());
  }
  put(text);
  return out;
}

Value string_replace(Interpreter& on, const Value& self, const Arguments& arguments) {
  const Bound bound("replace", arguments, {"old", "new", "count"}, 2);
  (void)bound.string(0, "");
  return same_kind(on, self,
                   replaced(on, self.bytes(), bound.string(0, ""), beside(self, bound[1]), bound.integer(2, -1)));
}

Value filter_replace(Interpreter& on, const Value& value, const Arguments& arguments) {
  const Bound bound("replace", arguments, {"old", "new", "count"}, 2);
  const int64_t most = bound.absent(2) ? -1 : bound.integer(2, -1);
  return on.string(replaced(on, on.text_of(value), on.text_of(bound[0]), on.text_of(bound[1]), most));
}

Value string_join(Interpreter& on, const Value& self, const Arguments& arguments) {
  const Bound bound("join", arguments, {"iterable"}, 1);
  bound[0].require_defined();
  if (!self.text().markup()) return on.string(joined(on, self.bytes(), bound[0], false));
  std::vector<Value> items;
  for (const Value& item : elements(bound[0], on.heap())) items.push_back(on.string(beside(self, item)));
  return same_kind(on, self, joined(on, self.bytes(), on.heap().list(std::move(items)), false));
}

// What marked text formats is escaped, unless it is marked itself.
Value escaped_part(Interpreter& on, const Value& value) {
  return value.is_string() && !value.text().markup() ? on.string(escaped(value.bytes()), true) : value;
}

Value string_format(Interpreter& on, const Value& self, const Arguments& arguments) {
  if (!self.text().markup()) return on.string(format_braces(on, self.bytes(), arguments));
  Arguments safe = arguments;
  for (Value& value : safe.positional) value = escaped_part(on, value);
  for (auto& [name, value] : safe.keywords) value = escaped_part(on, value);
  return on.string(format_braces(on, self.bytes(), safe), true);
}

Value percent_of_markup(Interpreter& on, const Value& pattern, const Value& values) {
  Value safe = escaped_part(on, values);
  if (values.is(Kind::list)) {
    std::vector<Value> items;
    for (const Value& item : values.list().items) items.push_back(escaped_part(on, item));
    safe = on.heap().list(std::move(items), values.list().kind);
  } else if (values.is(Kind::dict)) {
    auto* const dict = on.heap().make<Dict>();
    for (const Dict::Entry& entry : values.dict().entries())
      on.heap().set(*dict, entry.key, escaped_part(on, entry.value));
    safe = Value::of(dict);
  }
  return on.string(format_percent(pattern.bytes(), safe), true);
}

template <bool suffix>
Value string_remove(Interpreter& on, const Value& self, const Arguments& arguments) {
  const Bound bound(suffix ? "removesuffix" : "removeprefix", arguments, {"affix"}, 1);
  std::string_view text = self.bytes();
  const std::string_view affix = bound.string(0, "");
  if (suffix && text.ends_with(affix)) text.remove_suffix(affix.size());
  if (!suffix && text.starts_with(affix)) text.remove_prefix(affix.size());
  return same_kind(on, self, std::string(text));
}

template <Side side>
Value string_pad(Interpreter& on, const Value& self, const Arguments& arguments) {
  const Bound bound("center", arguments, {"width", "fillchar"}, 1);
  const std::string_view fill = bound.string(1, " ");
  if (characters_in(fill) != 1) throw Failure{"The fill character must be exactly one character long"};
  return same_kind(on, self, padded(self, integer_of(bound[0]), fill, side));
}

Value string_zfill(Interpreter& on, const Value& self, const Arguments& arguments) {
  const Bound bound("zfill", arguments, {"width"}, 1);
  const int64_t missing = bounded_width(integer_of(bound[0])) - self.text().characters();
  std::string text = self.bytes();
  const bool sign = text.starts_with('-') || text.starts_with('+');
  if (missing > 0) text.insert(sign ? 1 : 0, static_cast<size_t>(missing), '0');
  return same_kind(on, self, std::move(text));
}

// Whether the text is not empty and all of it is of a kind.
template <bool (*is)(char32_t)>
Value string_all(Interpreter& /*on*/, const Value& self, const Arguments& /*arguments*/) {
  const std::string& text = self.bytes();
  for (size_t at = 0; at < text.size();) {
    const unicode::Decoded next = unicode::decode(text.data() + at);
    if (!is(next.code)) return Value::of(false);
    at += static_cast<size_t>(next.length);
  }
  return Value::of(!text.empty());
}

template <bool (*is)(std::string_view)>
Value string_is(Interpreter& /*on*/, const Value& self, const Arguments& /*arguments*/) {
  return Value::of(is(self.bytes()));
}

bool is_letter(char32_t code) { return unicode::in_class(unicode::category(code), "L"); }
bool is_decimal(char32_t code) { return unicode::category(code) == unicode::Category::Nd; }
bool is_letter_or_number(char32_t code) { return is_letter(code) || unicode::is_numeric(code); }
bool is_ascii(char32_t code) { return code < 0x80; }

bool is_title(std::string_view text) { return (is_upper(text) || lower(text) != text) && title(text) == text; }

constexpr auto kStringMethods = std::to_array<Method>({
    {"capitalize", string_change<capitalize>},
    {"casefold", string_change<lower>},
    {"center", string_pad<Side::both>},
    {"count", string_count},
    {"endswith", string_starts<true>},
    {"find", string_find<false, false>},
    {"format", string_format},
    {"index", string_find<false, true>},
    {"isalnum", string_all<is_letter_or_number>},
    {"isalpha", string_all<is_letter>},
    {"isascii", string_all<is_ascii>},
    {"isdecimal", string_all<is_decimal>},
    {"isdigit", string_all<is_decimal>},
    {"islower", string_is<is_lower>},
    {"isnumeric", string_all<unicode::is_numeric>},
    {"isspace", string_all<is_python_space>},
    {"istitle", string_is<is_title>},
    {"isupper", string_is<is_upper>},
    {"join", string_join},
    {"ljust", string_pad<Side::left>},
    {"lower", string_change<lower>},
    {"lstrip", string_strip<Side::left>},
    {"partition", string_partition<false>},
    {"removeprefix", string_remove<false>},
    {"removesuffix", string_remove<true>},
    {"replace", string_replace},
    {"rfind", string_find<true, false>},
    {"rindex", string_find<true, true>},
    {"rjust", string_pad<Side::right>},
    {"rpartition", string_partition<true>},
    {"rsplit", string_split<true>},
    {"rstrip", string_strip<Side::right>},
    {"split", string_split<false>},
    {"splitlines", string_splitlines},
    {"startswith", string_starts<false>},
    {"strip", string_strip<Side::both>},
    {"swapcase", string_change<swap_case>},
    {"title", string_change<title>},
    {"upper", string_change<upper>},
    {"zfill", string_zfill},
});

// --- Methods of lists, tuples and dictionaries

Value list_count(Interpreter& on, const Value& self, const Arguments& arguments) {
  const Bound bound("count", arguments, {"value"}, 1);
  int64_t count = 0;
  for (const Value& item : self.list().items) count += equals(on, item, bound[0]);
  return Value::of(count);
}

Value list_index(Interpreter& on, const Value& self, const Arguments& arguments) {
  const Bound bound("index", arguments, {"value", "start", "stop"}, 1);
  const std::vector<Value>& items = self.list().items;
  const auto place = [&](size_t i, int64_t otherwise) {
    const int64_t at = bound.integer(i, otherwise);
    return std::clamp<int64_t>(at < 0 ? at + std::ssize(items) : at, 0, std::ssize(items));
  };
  for (int64_t i = place(1, 0); i < place(2, std::ssize(items)); ++i) {
    if (equals(on, items[static_cast<size_t>(i)], bound[0])) return Value::of(i);
  }
  throw Failure{"value is not in list"};
}

Value list_copy(Interpreter& on, const Value& self, const Arguments& /*arguments*/) {
  on.spend(std::ssize(self.list().items));
  return on.heap().list(self.list().items);
}

constexpr auto kListMethods = std::to_array<Method>({
    {"append", nullptr},
    {"clear", nullptr},
    {"copy", list_copy},
    {"count", list_count},
    {"extend", nullptr},
    {"index", list_index},
    {"insert", nullptr},
    {"pop", nullptr},
    {"remove", nullptr},
    {"reverse", nullptr},
    {"sort", nullptr},
});

constexpr auto kTupleMethods = std::to_array<Method>({{"count", list_count}, {"index", list_index}});

Value dict_get(Interpreter& on, const Value& self, const Arguments& arguments) {
  const Bound bound("get", arguments, {"key", "default"}, 1);
  on.spend(extent_of(bound[0]).weight);
  const Value* const found = self.dict().find(bound[0]);
  return found != nullptr ? *found : bound.has(1) ? bound[1] : Value::none();
}

template <List::Kind kind>
Value dict_view(Interpreter& on, const Value& self, const Arguments& arguments) {
  const Bound bound("dict method", arguments, {});
  std::vector<Value> items;
  on.spend(std::ssize(self.dict().entries()));
  for (const Dict::Entry& entry : self.dict().entries()) {
    items.push_back(kind == List::Kind::keys     ? entry.key
                    : kind == List::Kind::values ? entry.value
                                                 : on.heap().tuple({entry.key, entry.value}));
  }
  return on.heap().list(std::move(items), kind);
}

Value copied(Interpreter& on, Dict& to, const Dict& from) {
  on.spend(std::ssize(from.entries()));
  for (const Dict::Entry& entry : from.entries()) on.heap().set(to, entry.key, entry.value);
  return Value::of(&to);
}

Value dict_copy(Interpreter& on, const Value& self, const Arguments& /*arguments*/) {
  return copied(on, *on.heap().make<Dict>(), self.dict());
}

constexpr auto kDictMethods = std::to_array<Method>({
    {"clear", nullptr},
    {"copy", dict_copy},
    {"get", dict_get},
    {"items", dict_view<List::Kind::items>},
    {"keys", dict_view<List::Kind::keys>},
    {"pop", nullptr},
    {"popitem", nullptr},
    {"setdefault", nullptr},
    {"update", nullptr},
    {"values", dict_view<List::Kind::values>},
});

// --- Functions

Value function_range(Interpreter& on, const Arguments& arguments) {
  const std::vector<Value>& of = arguments.positional;
  if (of.empty() || of.size() > 3 || !arguments.keywords.empty()) throw Failure{"range expects 1 to 3 arguments"};
  const int64_t first = integer_of(of[0]);
  if (of.size() == 1) return Value::of(on.heap().make<Range>(0, first, 1));
  return Value::of(on.heap().make<Range>(first, integer_of(of[1]), of.size() == 3 ? integer_of(of[2]) : 1));
}

Dict& dict_of(Interpreter& on, const Arguments& arguments) {
  if (arguments.positional.size() > 1) throw Failure{"dict expected at most 1 argument"};
  auto* const made = on.heap().make<Dict>();
  if (!arguments.positional.empty()) {
    const Value& from = arguments.positional[0];
    if (from.is(Kind::dict)) {
      copied(on, *made, from.dict());
    } else {
      for (const Value& pair : elements(from, on.heap())) {
        const std::vector<Value> entry = elements(pair, on.heap());
        if (entry.size() != 2)
          throw Failure{concat("a dictionary entry must be a pair, got ", entry.size(), " values")};
        on.spend(1);
        on.heap().set(*made, entry[0], entry[1]);
      }
    }
  }
  for (const auto& [name, value] : arguments.keywords) on.heap().set(*made, on.string(name), value);
  return *made;
}

Value function_dict(Interpreter& on, const Arguments& arguments) { return Value::of(&dict_of(on, arguments)); }

Value function_namespace(Interpreter& on, const Arguments& arguments) {
  return Value::of(static_cast<Object*>(on.heap().make<Namespace>(dict_of(on, arguments))));
}

class Cycler final : public Special {
 public:
  explicit Cycler(std::vector<Value> items) : items_(std::move(items)) {}
  std::optional<Value> attribute(Interpreter& on, std::string_view name) override;
  [[nodiscard]] std::string name() const override { return "Cycler"; }

  Value next() {
    Value item = items_[at_];
    at_ = (at_ + 1) % items_.size();
    return item;
  }
  void reset() { at_ = 0; }

 private:
  std::vector<Value> items_;
  size_t at_ = 0;
};

class CyclerMethod final : public Special {
 public:
  CyclerMethod(Cycler& cycler, bool resets) : cycler_(cycler), resets_(resets) {}
  bool callable() const override { return true; }
  Value call(Interpreter& /*on*/, const Arguments& /*arguments*/) override {
    if (!resets_) return cycler_.next();
    cycler_.reset();
    return Value::none();
  }
  [[nodiscard]] std::string name() const override { return "method of Cycler"; }

 private:
  Cycler& cycler_;
  bool resets_;
};

std::optional<Value> Cycler::attribute(Interpreter& on, std::string_view name) {
  if (name == "current") return items_[at_];
  if (name == "next" || name == "reset") {
    return Value::of(static_cast<Object*>(on.heap().make<CyclerMethod>(*this, name == "reset")));
  }
  return {};
}

Value function_cycler(Interpreter& on, const Arguments& arguments) {
  if (arguments.positional.empty()) throw Failure{"at least one item has to be provided"};
  return Value::of(static_cast<Object*>(on.heap().make<Cycler>(arguments.positional)));
}

class Joiner final : public Special {
 public:
  explicit Joiner(Value separator) : separator_(std::move(separator)) {}
  bool callable() const override { return true; }
  Value call(Interpreter& on, const Arguments& /*arguments*/) override {
    return std::exchange(used_, true) ? separator_ : on.string("");
  }
  [[nodiscard]] std::string name() const override { return "Joiner"; }

 private:
  Value separator_;
  bool used_ = false;
};

Value function_joiner(Interpreter& on, const Arguments& arguments) {
  const Bound bound("joiner", arguments, {"sep"});
  return Value::of(static_cast<Object*>(on.heap().make<Joiner>(bound.has(0) ? bound[0] : on.string(", "))));
}

Value function_raise(Interpreter& on, const Arguments& arguments) {
  const Bound bound("raise_exception", arguments, {"message"}, 1);
  throw Failure{concat("the template refuses: ", on.text_of(bound[0]))};
}

Value function_strftime(Interpreter& on, const Arguments& arguments) {
  const Bound bound("strftime_now", arguments, {"format"}, 1);
  // Python's own additions: microseconds, which are not known here, and a zone, which its naive time lacks.
  std::string format;
  const std::string_view given = bound.string(0, "");
  constexpr size_t kMostFormat = 1024;
  if (given.size() > kMostFormat)
    throw Failure{concat("a format of strftime_now must be at most ", kMostFormat, " long")};
  for (size_t i = 0; i < given.size(); ++i) {
    if (given[i] != '%' || i + 1 == given.size()) {
      format += given[i];
      continue;
    }
    const char letter = given[++i];
    if (letter == 'f') {
      format += "000000";
    } else if (letter != 'z' && letter != 'Z') {
      format += {'%', letter};
    }
  }
  std::tm local{};
  const std::time_t now = on.now();
  localtime_r(&now, &local);
  std::vector<char> text(size_t{1} << 17);
  format += ' ';  // so that nothing written means that it does not fit
  const size_t written = std::strftime(text.data(), text.size(), format.c_str(), &local);
  if (written == 0) throw Failure{"strftime_now writes too much"};
  return on.string(std::string(text.data(), written - 1));
}

constexpr auto kFunctions = std::to_array<Function>({
    {"range", function_range},
    {"dict", function_dict},
    {"namespace", function_namespace},
    {"cycler", function_cycler},
    {"joiner", function_joiner},
    {"raise_exception", function_raise},
    {"strftime_now", function_strftime},
});

template <class Row, size_t n>
const Row* find_row(const std::array<Row, n>& rows, std::string_view name) {
  const auto found = std::find_if(rows.begin(), rows.end(), [&](const Row& row) { return name == row.name; });
  return found == rows.end() ? nullptr : &*found;
}

}  // namespace

Bound::Bound(std::string_view function, const Arguments& arguments, std::initializer_list<const char*> parameters,
             size_t required)
    : function_(function), values_(parameters.size(), nullptr) {
  if (arguments.positional.size() > parameters.size()) {
    throw Failure{
        concat(function, " takes at most ", parameters.size(), " arguments, got ", arguments.positional.size())};
  }
  for (size_t i = 0; i < arguments.positional.size(); ++i) values_[i] = &arguments.positional[i];
  for (const auto& [name, value] : arguments.keywords) {
    const auto* const found = std::find(parameters.begin(), parameters.end(), std::string_view(name));
    if (found == parameters.end()) throw Failure{concat(function, " takes no argument ", quote(name))};
    const Value*& place = values_[static_cast<size_t>(found - parameters.begin())];
    if (place != nullptr) throw Failure{concat(function, " got two values for the argument ", quote(name))};
    place = &value;
  }
  for (size_t i = 0; i < required; ++i) {
    if (!has(i)) throw Failure{concat(function, " needs the argument ", std::data(parameters)[i])};
  }
}

int64_t Bound::integer(size_t i, int64_t otherwise) const { return has(i) ? integer_of(*values_[i]) : otherwise; }

std::string_view Bound::string(size_t i, std::string_view otherwise) const {
  if (!has(i)) return otherwise;
  values_[i]->require_defined();
  if (!values_[i]->is_string()) throw Failure{concat(function_, " needs a string, got '", type_name(*values_[i]), "'")};
  return values_[i]->bytes();
}

const Filter* find_filter(std::string_view name) { return find_row(kFilters, name); }
const Test* find_test(std::string_view name) { return find_row(kTests, name); }
const Function* find_function(std::string_view name) { return find_row(kFunctions, name); }

const Method* find_method(const Value& of, std::string_view name) {
  switch (of.kind()) {
    case Kind::string: return find_row(kStringMethods, name);
    case Kind::dict: return find_row(kDictMethods, name);
    case Kind::list:
      if (!of.list().indexable()) return nullptr;
      return of.list().kind == List::Kind::tuple ? find_row(kTupleMethods, name) : find_row(kListMethods, name);
    default: return nullptr;
  }
}

// --- Arithmetic

namespace {

constexpr std::array<std::string_view, 7> kSymbols = {"+", "-", "*", "/", "//", "%", "**"};

[[noreturn]] void refuse(Arithmetic op, const Value& a, const Value& b) {
  throw Failure{concat("unsupported operand type(s) for ", kSymbols[static_cast<size_t>(op)], ": '", type_name(a),
                       "' and '", type_name(b), "'")};
}

[[noreturn]] void overflow() { throw Failure{"integers must fit 64 bits"}; }

int64_t integer_power(int64_t base, int64_t exponent) {
  int64_t result = 1;
  for (;; exponent >>= 1) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) overflow();
    if (exponent <= 1) return result;
    if (__builtin_mul_overflow(base, base, &base)) overflow();
  }
}

Value on_integers(Arithmetic op, int64_t a, int64_t b) {
  int64_t result = 0;
  switch (op) {
    case Arithmetic::add:
      if (__builtin_add_overflow(a, b, &result)) overflow();
      return Value::of(result);
    case Arithmetic::subtract:
      if (__builtin_sub_overflow(a, b, &result)) overflow();
      return Value::of(result);
    case Arithmetic::multiply:
      if (__builtin_mul_overflow(a, b, &result)) overflow();
      return Value::of(result);
    case Arithmetic::divide: return Value::of(static_cast<double>(a) / static_cast<double>(b));
    case Arithmetic::floor_divide:
      if (b == -1) return on_integers(Arithmetic::subtract, 0, a);
      return Value::of(a / b - (a % b != 0 && (a < 0) != (b < 0) ? 1 : 0));
    case Arithmetic::modulo:
      if (b == -1) return Value::of(int64_t{0});
      return Value::of(a % b != 0 && (a < 0) != (b < 0) ? a % b + b : a % b);
    case Arithmetic::power:
      if (b < 0) return Value::of(std::pow(static_cast<double>(a), static_cast<double>(b)));
      return Value::of(a == 1 || a == 0 || a == -1 ? (b == 0 || a == 1 ? 1
                                                      : a == 0         ? 0
                                                      : b % 2 == 0     ? 1
                                                                       : -1)
                                                   : integer_power(a, b));
  }
  return {};
}

Value on_reals(Arithmetic op, double a, double b) {
  switch (op) {
    case Arithmetic::add: return Value::of(a + b);
    case Arithmetic::subtract: return Value::of(a - b);
    case Arithmetic::multiply: return Value::of(a * b);
    case Arithmetic::divide: return Value::of(a / b);
    case Arithmetic::floor_divide:
    case Arithmetic::modulo: {
      double remainder = std::fmod(a, b);
      double quotient = (a - remainder) / b;
      if (remainder != 0) {
        if ((b < 0) != (remainder < 0)) {
          remainder += b;
          quotient -= 1;
        }
      } else {
        remainder = std::copysign(0.0, b);
      }
      if (op == Arithmetic::modulo) return Value::of(remainder);
      if (quotient == 0) return Value::of(std::copysign(0.0, a / b));
      const double whole = std::floor(quotient);
      return Value::of(quotient - whole > 0.5 ? whole + 1 : whole);
    }
    case Arithmetic::power: {
      if (a < 0 && std::isfinite(b) && std::trunc(b) != b) throw Failure{"complex numbers are not supported"};
      const double result = std::pow(a, b);
      if (std::isinf(result) && std::isfinite(a) && std::isfinite(b)) throw Failure{"Numerical result out of range"};
      return Value::of(result);
    }
  }
  return {};
}

Value repeated(Interpreter& on, const Value& sequence, int64_t times) {
  times = std::max<int64_t>(0, times);
  constexpr int64_t kMost = int64_t{1} << 26;
  const int64_t size = sequence.is_string() ? std::ssize(sequence.bytes()) : std::ssize(sequence.list().items);
  if (size > 0 && times > kMost / size) throw Failure{"a repeated sequence is too large"};
  if (sequence.is_string()) {
    on.spend_bytes(static_cast<size_t>(size * times));
    std::string text;
    text.reserve(static_cast<size_t>(size * times));
    for (int64_t i = 0; i < times && size > 0; ++i) text += sequence.bytes();
    return on.string(std::move(text), sequence.text().markup());
  }
  on.spend(size * times);
  on.heap().charge(size * times * static_cast<int64_t>(sizeof(Value)));
  std::vector<Value> items;
  for (int64_t i = 0; i < times && size > 0; ++i) {
    items.insert(items.end(), sequence.list().items.begin(), sequence.list().items.end());
  }
  return on.heap().list(std::move(items), sequence.list().kind);
}

Value added(Interpreter& on, const Value& a, const Value& b) {
  if (a.is_string() && b.is_string()) {
    on.spend_bytes(a.bytes().size() + b.bytes().size());
    const bool markup = a.text().markup() || b.text().markup();
    if (!markup || a.text().markup() == b.text().markup()) return on.string(a.bytes() + b.bytes(), markup);
    return on.string(a.text().markup() ? a.bytes() + escaped(b.bytes()) : escaped(a.bytes()) + b.bytes(), true);
  }
  std::vector<Value> items = a.list().items;
  items.insert(items.end(), b.list().items.begin(), b.list().items.end());
  on.spend(std::ssize(items));
  return on.heap().list(std::move(items), a.list().kind);
}

bool is_sequence(const Value& value) { return value.is_string() || (value.is(Kind::list) && value.list().indexable()); }

}  // namespace

Value arithmetic(Interpreter& on, Arithmetic op, const Value& a, const Value& b) {
  // Formatting comes first: what is formatted may be undefined.
  if (op == Arithmetic::modulo && a.is_string()) {
    on.spend(extent_of(b).weight);
    return a.text().markup() ? percent_of_markup(on, a, b) : on.string(format_percent(a.bytes(), b));
  }
  a.require_defined();
  b.require_defined();
  if (a.is_number() && b.is_number()) {
    const bool divides = op == Arithmetic::divide || op == Arithmetic::floor_divide || op == Arithmetic::modulo;
    const bool inverts = op == Arithmetic::power && a.real() == 0 && b.real() < 0;
    if ((divides && b.real() == 0) || inverts) throw Failure{"division by zero"};
    if (a.is_integral() && b.is_integral()) return on_integers(op, a.integer(), b.integer());
    return on_reals(op, a.real(), b.real());
  }
  if (op == Arithmetic::add && is_sequence(a) && a.kind() == b.kind() &&
      (a.is_string() || a.list().kind == b.list().kind)) {
    return added(on, a, b);
  }
  if (op == Arithmetic::multiply && is_sequence(a) && b.is_integral()) return repeated(on, a, b.integer());
  if (op == Arithmetic::multiply && a.is_integral() && is_sequence(b)) return repeated(on, b, a.integer());
  refuse(op, a, b);
}

Value negated(const Value& value) {
  value.require_defined();
  if (value.is(Kind::real)) return Value::of(-value.real());
  if (!value.is_integral()) throw Failure{concat("bad operand type for unary -: '", type_name(value), "'")};
  return on_integers(Arithmetic::subtract, 0, value.integer());
}

Value slice(Interpreter& on, const Value& of, const Value& begin, const Value& end, const Value& step) {
  of.require_defined();
  if (!is_sequence(of) && !of.is(Kind::range)) throw Failure{concat("'", type_name(of), "' object cannot be sliced")};
  const int64_t by = step.is_none() ? 1 : integer_of(step);
  if (by == 0) throw Failure{"slice step cannot be zero"};
  const int64_t size = *size_of(of);
  const int64_t lowest = by < 0 ? -1 : 0, highest = by < 0 ? size - 1 : size;
  const auto place = [&](const Value& bound, int64_t otherwise) {
    if (bound.is_none()) return otherwise;
    const int64_t at = integer_of(bound);
    return std::clamp(at < 0 ? std::max(at + size, lowest) : at, lowest, highest);
  };
  const int64_t first = place(begin, by < 0 ? highest : lowest), last = place(end, by < 0 ? lowest : highest);
  if (of.is(Kind::range)) {
    const Range& range = of.range();
    const auto at = [&](int64_t i) { return range.start + i * range.step; };
    int64_t stride = 0;
    if (__builtin_mul_overflow(range.step, by, &stride)) overflow();
    return Value::of(on.heap().make<Range>(at(first), at(last), stride));
  }
  std::vector<int64_t> places;
  const int64_t distance = by > 0 ? last - first : first - last;
  if (of.is_string() && by == 1) {
    if (distance <= 0) return on.string("", of.text().markup());
    if (!of.text().ascii()) on.spend_bytes(2 * of.bytes().size());
    const size_t from = of.text().offset(first), to = of.text().offset(last);
    on.spend_bytes(to - from);
    return on.string(of.bytes().substr(from, to - from), of.text().markup());
  }
  for (int64_t i = first; by > 0 ? i < last : i > last;) {
    places.push_back(i);
    if (__builtin_add_overflow(i, by, &i)) break;
  }
  on.spend(std::ssize(places));
  if (of.is(Kind::list)) {
    std::vector<Value> items;
    items.reserve(places.size());
    for (const int64_t i : places) items.push_back(of.list().items[static_cast<size_t>(i)]);
    return on.heap().list(std::move(items), of.list().kind);
  }
  on.spend_bytes(of.bytes().size());
  std::vector<size_t> offsets;  // where the characters begin
  for (size_t at = 0; at < of.bytes().size(); ++at) {
    if ((static_cast<unsigned char>(of.bytes()[at]) & 0xC0) != 0x80) offsets.push_back(at);
  }
  offsets.push_back(of.bytes().size());
  std::string text;
  for (const int64_t i : places) {
    const auto at = static_cast<size_t>(i);
    text += of.bytes().substr(offsets[at], offsets[at + 1] - offsets[at]);
  }
  return on.string(std::move(text), of.text().markup());
}

}  // namespace elapid::jinja
