#include "elapid/text/jinja/value.h"

#include "elapid/core/error.h"
#include "elapid/text/unicode.h"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstdio>

namespace elapid::jinja {
namespace {

constexpr size_t kIndexedFrom = 9;  // entries of a dictionary

int64_t count_characters(std::string_view bytes) {
  return std::count_if(bytes.begin(), bytes.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

// Equal keys have equal spellings: 1, 1.0 and true are one key in Python.
void append_hashed(const Value& key, std::string& out) {
  switch (key.kind()) {
    case Value::Kind::string:
      out += concat('s', key.bytes().size(), ':');
      out += key.bytes();
      return;
    case Value::Kind::none: out += 'n'; return;
    case Value::Kind::undefined: out += 'u'; return;
    case Value::Kind::boolean:
    case Value::Kind::integer: out += concat('i', key.integer(), ';'); return;
    case Value::Kind::real: {
      const double real = key.real();
      if (std::trunc(real) == real && std::abs(real) < 0x1p63) {
        out += concat('i', static_cast<int64_t>(real), ';');
      } else {
        out += concat('f', std::bit_cast<uint64_t>(real), ';');
      }
      return;
    }
    case Value::Kind::list:
      if (key.list().kind == List::Kind::tuple) {
        out += concat('t', key.list().items.size(), ':');
        for (const Value& item : key.list().items) append_hashed(item, out);
        return;
      }
      break;
    case Value::Kind::dict: break;
    default: out += concat('o', reinterpret_cast<uintptr_t>(key.object()), ';'); return;
  }
  throw Failure{concat("unhashable type: '", type_name(key), "'")};
}

std::string hashed(const Value& key) {
  std::string out;
  append_hashed(key, out);
  return out;
}

}  // namespace

bool equal(const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return a.integer() == b.integer();
  if (a.is_number() && b.is_number()) return a.real() == b.real();
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Value::Kind::undefined:
    case Value::Kind::none: return true;
    case Value::Kind::string: return a.shared_text() == b.shared_text() || a.bytes() == b.bytes();
    case Value::Kind::list: {
      const List &x = a.list(), &y = b.list();
      if (&x == &y) return true;
      if (x.kind != y.kind || x.items.size() != y.items.size()) return false;
      for (size_t i = 0; i < x.items.size(); ++i) {
        if (!equal(x.items[i], y.items[i])) return false;
      }
      return true;
    }
    case Value::Kind::dict: {
      const Dict &x = a.dict(), &y = b.dict();
      if (&x == &y) return true;
      if (x.entries().size() != y.entries().size()) return false;
      return std::all_of(x.entries().begin(), x.entries().end(), [&](const Dict::Entry& entry) {
        const Value* const other = y.find(entry.key);
        return other != nullptr && equal(entry.value, *other);
      });
    }
    case Value::Kind::range: {
      const Range &x = a.range(), &y = b.range();
      if (x.size != y.size) return false;
      return x.size == 0 || (x.start == y.start && (x.size == 1 || x.step == y.step));
    }
    default: return a.object() == b.object();
  }
}

bool less(const Value& a, const Value& b) {
  a.require_defined();
  b.require_defined();
  if (a.is_integral() && b.is_integral()) return a.integer() < b.integer();
  if (a.is_number() && b.is_number()) return a.real() < b.real();
  if (a.is_string() && b.is_string()) return a.bytes() < b.bytes();  // UTF-8 sorts as code points do
  if (a.is(Value::Kind::list) && b.is(Value::Kind::list) && a.list().kind == b.list().kind && a.list().indexable()) {
    const std::vector<Value>&x = a.list().items, &y = b.list().items;
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      if (!equal(x[i], y[i])) return less(x[i], y[i]);
    }
    return x.size() < y.size();
  }
  throw Failure{concat("'", type_name(a), "' and '", type_name(b), "' have no order")};
}

namespace {

bool is_printable(char32_t code) {
  using unicode::Category;
  if (code == ' ') return true;
  const Category category = unicode::category(code);
  return !unicode::in_class(category, "Z") && !unicode::in_class(category, "C");
}

void append_repr_of(std::string_view text, std::string& out) {
  const bool doubled = text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos;
  const char mark = doubled ? '"' : '\'';
  out += mark;
  for (size_t at = 0; at < text.size();) {
    const unicode::Decoded next = unicode::decode(text.data() + at);
    const char32_t code = next.code;
    std::array<char, 16> escaped;
    if (code == static_cast<unsigned char>(mark) || code == '\\') {
      out += '\\';
      out += static_cast<char>(code);
    } else if (code == '\n') {
      out += "\\n";
    } else if (code == '\r') {
      out += "\\r";
    } else if (code == '\t') {
      out += "\\t";
    } else if (is_printable(code)) {
      out += text.substr(at, static_cast<size_t>(next.length));
    } else {
      const char* const pattern = code < 0x100 ? "\\x%02x" : code < 0x10000 ? "\\u%04x" : "\\U%08x";
      std::snprintf(escaped.data(), escaped.size(), pattern, static_cast<unsigned>(code));
      out += escaped.data();
    }
    at += static_cast<size_t>(next.length);
  }
  out += mark;
}

void append_items(const std::vector<Value>& items, std::string& out) {
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out += ", ";
    append_repr(items[i], out);
  }
}

void append_list(const List& list, std::string& out) {
  switch (list.kind) {
    case List::Kind::tuple:
      out += '(';
      append_items(list.items, out);
      out += list.items.size() == 1 ? ",)" : ")";
      return;
    case List::Kind::list: out += '['; break;
    case List::Kind::items: out += "dict_items(["; break;
    case List::Kind::keys: out += "dict_keys(["; break;
    case List::Kind::values: out += "dict_values(["; break;
  }
  append_items(list.items, out);
  out += list.kind == List::Kind::list ? "]" : "])";
}

}  // namespace

void append_repr(const Value& value, std::string& out) {
  switch (value.kind()) {
    case Value::Kind::undefined: out += "Undefined"; return;
    case Value::Kind::none: out += "None"; return;
    case Value::Kind::boolean: out += value.boolean() ? "True" : "False"; return;
    case Value::Kind::integer: out += std::to_string(value.integer()); return;
    case Value::Kind::real: out += real_to_string(value.real()); return;
    case Value::Kind::string:
      if (value.text().markup()) out += "Markup(";
      append_repr_of(value.bytes(), out);
      if (value.text().markup()) out += ")";
      return;
    case Value::Kind::list: append_list(value.list(), out); return;
    case Value::Kind::dict: {
      out += '{';
      const char* separator = "";
      for (const Dict::Entry& entry : value.dict().entries()) {
        out += separator;
        append_repr(entry.key, out);
        out += ": ";
        append_repr(entry.value, out);
        separator = ", ";
      }
      out += '}';
      return;
    }
    case Value::Kind::range: {
      const Range& range = value.range();
      out += concat("range(", range.start, ", ", range.stop);
      out += range.step == 1 ? ")" : concat(", ", range.step, ")");
      return;
    }
    default: out += concat("<", type_name(value), ">"); return;
  }
}

namespace {

// --- json.dumps

class JsonWriter {
 public:
  explicit JsonWriter(const JsonStyle& style) : style_(style) {}

  void write(const Value& value, int depth) {
    switch (value.kind()) {
      case Value::Kind::none: out += "null"; return;
      case Value::Kind::boolean: out += value.boolean() ? "true" : "false"; return;
      case Value::Kind::integer: out += std::to_string(value.integer()); return;
      case Value::Kind::real: out += number(value.real()); return;
      case Value::Kind::string: write_string(value.bytes()); return;
      case Value::Kind::list:
        if (!value.list().indexable()) break;
        write_list(value.list().items, depth);
        return;
      case Value::Kind::dict: write_dict(value.dict(), depth); return;
      default: break;
    }
    throw Failure{concat("Object of type ", type_name(value), " is not JSON serializable")};
  }

  std::string out;

 private:
  static std::string number(double value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
    return real_to_string(value);
  }

  void new_line(int depth) {
    if (!style_.indent) return;
    out += '\n';
    for (int i = 0; i < depth; ++i) out += *style_.indent;
  }

  void write_list(const std::vector<Value>& items, int depth) {
    out += '[';
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out += style_.item_separator;
      new_line(depth + 1);
      write(items[i], depth + 1);
    }
    if (!items.empty()) new_line(depth);
    out += ']';
  }

  static std::string key_of(const Value& key) {
    switch (key.kind()) {
      case Value::Kind::string: return key.bytes();
      case Value::Kind::none: return "null";
      case Value::Kind::boolean: return key.boolean() ? "true" : "false";
      case Value::Kind::integer: return std::to_string(key.integer());
      case Value::Kind::real: return number(key.real());
      default: break;
    }
    throw Failure{concat("keys must be str, int, float, bool or None, not ", type_name(key))};
  }

  void write_dict(const Dict& dict, int depth) {
    std::vector<const Dict::Entry*> entries;
    for (const Dict::Entry& entry : dict.entries()) entries.push_back(&entry);
    if (style_.sort_keys) {
      std::stable_sort(entries.begin(), entries.end(),
                       [](const auto* a, const auto* b) { return less(a->key, b->key); });
    }
    out += '{';
    for (size_t i = 0; i < entries.size(); ++i) {
      if (i > 0) out += style_.item_separator;
      new_line(depth + 1);
      write_string(key_of(entries[i]->key));
      out += style_.key_separator;
      write(entries[i]->value, depth + 1);
    }
    if (!entries.empty()) new_line(depth);
    out += '}';
  }

  void write_unit(unsigned unit) {
    std::array<char, 16> escaped;
    std::snprintf(escaped.data(), escaped.size(), "\\u%04x", unit);
    out += escaped.data();
  }

  void write_string(std::string_view text) {
    out += '"';
    for (size_t at = 0; at < text.size();) {
      const unicode::Decoded next = unicode::decode(text.data() + at);
      const char32_t code = next.code;
      switch (code) {
        case '"': out += "\\\""; break;
        case '\\': out += "\\\\"; break;
        case '\n': out += "\\n"; break;
        case '\r': out += "\\r"; break;
        case '\t': out += "\\t"; break;
        case '\f': out += "\\f"; break;
        case '\b': out += "\\b"; break;
        default:
          if (code < 0x20 || (style_.ensure_ascii && code > 0x7E && code < 0x10000)) {
            write_unit(code);
          } else if (style_.ensure_ascii && code >= 0x10000) {
            write_unit(0xD800 + ((code - 0x10000) >> 10));
            write_unit(0xDC00 + ((code - 0x10000) & 0x3FF));
          } else {
            out += text.substr(at, static_cast<size_t>(next.length));
          }
      }
      at += static_cast<size_t>(next.length);
    }
    out += '"';
  }

  const JsonStyle& style_;
};

}  // namespace

void Extent::add(const Value& part) {
  const Extent other = extent_of(part);
  weight += other.weight;
  depth = std::max(depth, other.depth + 1);
  if (weight > kMaxWeight) throw Failure{"a list or dictionary is too large"};
  if (depth > kMaxDepth) throw Failure{concat("values nest more than ", kMaxDepth, " deep")};
}

Extent extent_of(const Value& value) {
  constexpr int64_t kBytes = 16;  // of a text that weigh as much as a number
  switch (value.kind()) {
    case Value::Kind::string: return {1 + static_cast<int64_t>(value.bytes().size()) / kBytes, 1};
    case Value::Kind::list: return value.list().extent;
    case Value::Kind::dict: return value.dict().extent();
    case Value::Kind::range: return {1 + value.range().size, 1};
    case Value::Kind::generator: return value.generator().extent;
    default: return {};
  }
}

Text::Text(std::string bytes, bool markup, std::shared_ptr<Budget> budget)
    : bytes_(std::move(bytes)), characters_(count_characters(bytes_)), markup_(markup), budget_(std::move(budget)) {}

Text::~Text() {
  if (budget_) budget_->give(static_cast<int64_t>(bytes_.size() + sizeof(Text)));
}

size_t Text::offset(int64_t i) const {
  if (ascii()) return static_cast<size_t>(i);
  size_t at = 0;
  for (; i > 0; --i) {
    ++at;
    while (at < bytes_.size() && (static_cast<unsigned char>(bytes_[at]) & 0xC0) == 0x80) ++at;
  }
  return at;
}

Value Value::undefined(std::string why) {
  Value value;
  value.text_ = std::make_shared<const Text>(std::move(why));
  return value;
}

Value Value::of(bool value) {
  Value made(Kind::boolean);
  made.integer_ = value ? 1 : 0;
  return made;
}

Value Value::of(int64_t value) {
  Value made(Kind::integer);
  made.integer_ = value;
  return made;
}

Value Value::of(double value) {
  Value made(Kind::real);
  made.real_ = value;
  return made;
}

Value Value::of(std::shared_ptr<const Text> text) {
  Value made(Kind::string);
  made.text_ = std::move(text);
  return made;
}

Value Value::of(List* list) {
  Value made(Kind::list);
  made.object_ = list;
  return made;
}

Value Value::of(Dict* dict) {
  Value made(Kind::dict);
  made.object_ = dict;
  return made;
}

Value Value::of(Range* range) {
  Value made(Kind::range);
  made.object_ = range;
  return made;
}

Value Value::of(Generator* generator) {
  Value made(Kind::generator);
  made.object_ = generator;
  return made;
}

Value Value::of(Object* other) {
  Value made(Kind::other);
  made.object_ = other;
  return made;
}

List& Value::list() const { return static_cast<List&>(*object_); }
Dict& Value::dict() const { return static_cast<Dict&>(*object_); }
Range& Value::range() const { return static_cast<Range&>(*object_); }
Generator& Value::generator() const { return static_cast<Generator&>(*object_); }

std::string Value::why_undefined() const { return text_ ? text_->bytes() : "the value is undefined"; }

const Value* Dict::find_hashed(const std::string& key) const {
  const auto found = index_.find(key);
  return found == index_.end() ? nullptr : &entries_[found->second].value;
}

const Value* Dict::find(const Value& key) const {
  const std::string spelled = hashed(key);
  if (!index_.empty()) return find_hashed(spelled);
  for (const Entry& entry : entries_) {
    if (equal(entry.key, key)) return &entry.value;
  }
  return nullptr;
}

const Value* Dict::find(std::string_view key) const {
  if (!index_.empty()) return find_hashed(concat('s', key.size(), ':', key));
  for (const Entry& entry : entries_) {
    if (entry.key.is_string() && entry.key.bytes() == key) return &entry.value;
  }
  return nullptr;
}

void Dict::set(const Value& key, Value value) {
  extent_.add(key);
  extent_.add(value);
  if (const Value* const known = find(key)) {
    const_cast<Value&>(*known) = std::move(value);  // of this object, which is not const here
    return;
  }
  entries_.push_back({key, std::move(value)});
  if (entries_.size() < kIndexedFrom) return;
  for (size_t i = index_.empty() ? 0 : entries_.size() - 1; i < entries_.size(); ++i) {
    index_.emplace(hashed(entries_[i].key), i);
  }
}

Range::Range(int64_t from, int64_t to, int64_t by) : start(from), stop(to), step(by), size(0) {
  constexpr int64_t kMost = 100'000;  // of Jinja's sandbox
  if (step == 0) throw Failure{"range() arg 3 must not be zero"};
  // Within 127 bits, in parts that cannot overflow: the distance fits an unsigned 64-bit number.
  const bool forward = step > 0;
  if (forward ? start >= stop : start <= stop) return;
  const uint64_t low = static_cast<uint64_t>(forward ? start : stop),
                 high = static_cast<uint64_t>(forward ? stop : start);
  const uint64_t distance = high - low, stride = forward ? static_cast<uint64_t>(step) : -static_cast<uint64_t>(step);
  const uint64_t count = (distance - 1) / stride + 1;
  if (count > kMost) {
    throw Failure{concat("Range too big. The sandbox blocks ranges larger than MAX_RANGE (", kMost, ").")};
  }
  size = static_cast<int64_t>(count);
}

void Source::require_iterable(const Value& value) {
  switch (value.kind()) {
    case Value::Kind::undefined:
    case Value::Kind::string:
    case Value::Kind::list:
    case Value::Kind::dict:
    case Value::Kind::range:
    case Value::Kind::generator: return;
    default: throw Failure{concat("'", type_name(value), "' object is not iterable")};
  }
}

std::optional<Value> Source::next() {
  switch (of_.kind()) {
    case Value::Kind::undefined: return {};
    case Value::Kind::string: {
      const Text& text = of_.text();
      if (at_ >= text.bytes().size()) return {};
      const auto length = static_cast<size_t>(unicode::decode(text.bytes().data() + at_).length);
      Value character = Value::of(std::make_shared<const Text>(text.bytes().substr(at_, length), text.markup()));
      at_ += length;
      return character;
    }
    case Value::Kind::list:
      if (at_ >= of_.list().items.size()) return {};
      return of_.list().items[at_++];
    case Value::Kind::dict:
      if (at_ >= of_.dict().entries().size()) return {};
      return of_.dict().entries()[at_++].key;
    case Value::Kind::range:
      if (at_ >= static_cast<size_t>(of_.range().size)) return {};
      return Value::of(of_.range().at(static_cast<int64_t>(at_++)));
    case Value::Kind::generator: return of_.generator().next();
    default: require_iterable(of_); return {};
  }
}

Value Heap::string(std::string bytes, bool markup) {
  budget_->take(static_cast<int64_t>(bytes.size() + sizeof(Text)));
  return Value::of(std::make_shared<const Text>(std::move(bytes), markup, budget_));
}

Value Heap::list(std::vector<Value> items, List::Kind kind) {
  charge(static_cast<int64_t>(items.capacity() * sizeof(Value)));
  return Value::of(make<List>(kind, std::move(items)));
}

void Heap::set(Dict& dict, const Value& key, Value value) {
  constexpr int64_t kIndexBytes = 96;  // about what the index costs an entry, besides its key
  charge(static_cast<int64_t>(sizeof(Dict::Entry)) + kIndexBytes +
         (key.is_string() ? static_cast<int64_t>(key.bytes().size()) : 0));
  dict.set(key, std::move(value));
}

bool truthy(const Value& value) {
  switch (value.kind()) {
    case Value::Kind::undefined:
    case Value::Kind::none: return false;
    case Value::Kind::boolean:
    case Value::Kind::integer: return value.integer() != 0;
    case Value::Kind::real: return value.real() != 0;
    case Value::Kind::generator:
    case Value::Kind::other: return true;
    default: return *size_of(value) != 0;
  }
}

std::optional<int64_t> size_of(const Value& value) {
  switch (value.kind()) {
    case Value::Kind::undefined: return 0;
    case Value::Kind::string: return value.text().characters();
    case Value::Kind::list: return std::ssize(value.list().items);
    case Value::Kind::dict: return std::ssize(value.dict().entries());
    case Value::Kind::range: return value.range().size;
    default: return {};
  }
}

bool contains(const Value& container, const Value& item) {
  if (container.is_string()) {
    if (!item.is_string()) {
      item.require_defined();
      throw Failure{concat("'in <string>' requires string as left operand, not ", type_name(item))};
    }
    return container.bytes().find(item.bytes()) != std::string::npos;
  }
  if (container.is(Value::Kind::dict)) return container.dict().find(item) != nullptr;
  Source::require_iterable(container);
  Source source(container);
  while (const std::optional<Value> next = source.next()) {
    if (equal(*next, item)) return true;
  }
  return false;
}

std::string_view type_name(const Value& value) {
  switch (value.kind()) {
    case Value::Kind::undefined: return "Undefined";
    case Value::Kind::none: return "NoneType";
    case Value::Kind::boolean: return "bool";
    case Value::Kind::integer: return "int";
    case Value::Kind::real: return "float";
    case Value::Kind::string: return value.text().markup() ? "Markup" : "str";
    case Value::Kind::list: {
      constexpr std::array<std::string_view, 5> kNames = {"list", "tuple", "dict_items", "dict_keys", "dict_values"};
      return kNames[static_cast<size_t>(value.list().kind)];
    }
    case Value::Kind::dict: return "dict";
    case Value::Kind::range: return "range";
    case Value::Kind::generator: return "generator";
    case Value::Kind::other: return "function";
  }
  return "object";
}

std::string real_to_string(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  // The shortest digits that read back as the value, which Python writes without an exponent from 1e-4 up to 1e16.
  std::array<char, 64> text;
  const auto scientific = std::to_chars(text.data(), text.data() + text.size(), value, std::chars_format::scientific);
  const std::string shortest(text.data(), scientific.ptr);
  const int exponent = std::stoi(shortest.substr(shortest.find('e') + 1));
  if (exponent < -4 || exponent >= 16) return shortest;
  const auto fixed = std::to_chars(text.data(), text.data() + text.size(), value, std::chars_format::fixed);
  std::string plain(text.data(), fixed.ptr);
  if (plain.find('.') == std::string::npos) plain += ".0";
  return plain;
}

void append_string(const Value& value, std::string& out) {
  if (value.is_string()) {
    out += value.bytes();
  } else if (!value.is_undefined()) {
    append_repr(value, out);
  }
}

std::string to_string(const Value& value) {
  std::string out;
  append_string(value, out);
  return out;
}

std::string to_json(const Value& value, const JsonStyle& style) {
  JsonWriter writer(style);
  writer.write(value, 0);
  return std::move(writer.out);
}

std::vector<Value> elements(const Value& iterable, Heap& heap) {
  Source::require_iterable(iterable);
  constexpr int64_t kBatch = 1024;
  constexpr int64_t kCharacter = sizeof(Text) + 32;  // a text of its own
  if (const auto size = size_of(iterable)) {
    heap.charge(*size * (static_cast<int64_t>(sizeof(Value)) + (iterable.is_string() ? kCharacter : 0)));
  }
  std::vector<Value> all;
  Source source(iterable);
  while (std::optional<Value> next = source.next()) {
    if (std::ssize(all) % kBatch == kBatch - 1) heap.charge(kBatch * static_cast<int64_t>(sizeof(Value)));
    all.push_back(std::move(*next));
  }
  return all;
}

}  // namespace elapid::jinja
