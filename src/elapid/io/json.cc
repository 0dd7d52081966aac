#include "elapid/io/json.h"

#include "elapid/core/error.h"

#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>
#include <unordered_set>
#include <utility>
#include <vector>

namespace elapid {
namespace {

constexpr size_t kMaxDepth = 256;
constexpr size_t kMaxQuoted = 80;  // bytes of foreign text in an error

constexpr std::string_view kFloatKey = "__float__";
constexpr std::string_view kBeforeFloat = R"({"__float__":")";
constexpr std::string_view kAfterFloat = R"("})";
constexpr size_t kFloatGrowth = kBeforeFloat.size() + kAfterFloat.size();

// The offset just after the string that begins at `begin`, or the end of the text.
size_t end_of_string(std::string_view text, size_t begin) {
  for (size_t i = begin + 1; i < text.size(); ++i) {
    if (text[i] == '"') return i + 1;
    if (text[i] == '\\') ++i;
  }
  return text.size();
}

// Calls f(offset, token) for every bare Infinity, -Infinity and NaN outside strings, in order.
template <class F>
void for_each_bare_float(std::string_view text, F f) {
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    if (c == '"') {
      i = end_of_string(text, i);
      continue;
    }
    if (c == 'I' || c == 'N' || c == '-') {
      for (const std::string_view token : {"Infinity", "-Infinity", "NaN"}) {
        if (!text.substr(i).starts_with(token)) continue;
        f(i, token);
        i += token.size() - 1;
        break;
      }
    }
    ++i;
  }
}

// The text with every bare float in its object form; empty when there is none.
std::string wrap_bare_floats(std::string_view text) {
  std::string result;
  size_t copied = 0;
  for_each_bare_float(text, [&](size_t offset, std::string_view token) {
    result.append(text.substr(copied, offset - copied)).append(kBeforeFloat).append(token).append(kAfterFloat);
    copied = offset + token.size();
  });
  if (copied > 0) result.append(text.substr(copied));
  return result;
}

// Where an offset into wrap_bare_floats(text) lies in `text`.
size_t unwrapped_offset(std::string_view text, size_t wrapped) {
  size_t result = wrapped, growth = 0;
  for_each_bare_float(text, [&](size_t offset, std::string_view token) {
    const size_t begin = offset + growth, end = begin + token.size() + kFloatGrowth;
    growth += kFloatGrowth;
    if (wrapped >= begin) result = wrapped < end ? offset : wrapped - growth;
  });
  return result;
}

// The part of nlohmann's message that says what is wrong, without its prefixes and without the text it quotes, which
// may be long: "… syntax error while parsing value - invalid literal; last read: '…'" → "invalid literal".
std::string reason_of(const nlohmann::detail::exception& error) {
  constexpr int kNumberOverflow = 406;
  if (error.id == kNumberOverflow) return "a number out of range";
  std::string_view reason = error.what();
  if (const size_t dash = reason.find(" - "); dash != std::string_view::npos) reason.remove_prefix(dash + 3);
  return std::string(reason.substr(0, reason.find(';')).substr(0, 2 * kMaxQuoted));
}

struct SyntaxError {
  size_t offset;
  std::string reason;
};

// Builds the document from the parser's events. The library's own builder lets a later duplicate win and has no limit
// on depth.
template <class Json>
class DocumentBuilder final : public nlohmann::json_sax<Json> {
 public:
  using string_t = typename Json::string_t;

  explicit DocumentBuilder(const std::string& what) : what_(what) {}

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(typename Json::number_integer_t value) override { return add(value); }
  bool number_unsigned(typename Json::number_unsigned_t value) override { return add(value); }
  bool number_float(typename Json::number_float_t value, const string_t& /*text*/) override { return add(value); }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(typename Json::binary_t& value) override { return add(std::move(value)); }
  bool start_object(size_t /*size*/) override { return open(Json::object()); }
  bool end_object() override { return close(); }
  bool start_array(size_t /*size*/) override { return open(Json::array()); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    const bool is_new = keys_.back().insert(name).second;
    require(is_new, what_, ": keys of one object must differ, got ", quote(name), " twice");
    auto& object = open_.back()->template get_ref<typename Json::object_t&>();
    if constexpr (std::is_same_v<Json, OrderedJson>) {
      member_ = &object.emplace_back(std::move(name), nullptr).second;  // emplace() would look through all keys again
    } else {
      member_ = &object[std::move(name)];
    }
    return true;
  }

  bool parse_error(size_t position, const std::string& /*token*/, const nlohmann::detail::exception& error) override {
    throw SyntaxError{position > 0 ? position - 1 : 0, reason_of(error)};
  }

  Json take() { return std::move(root_); }

 private:
  template <class T>
  bool add(T&& value) {
    place() = std::forward<T>(value);
    return true;
  }

  bool open(Json container) {
    require(open_.size() < kMaxDepth, what_, ": arrays and objects must nest at most ", kMaxDepth,
            " deep, got deeper ones");
    Json& value = place();
    value = std::move(container);
    open_.push_back(&value);
    keys_.emplace_back();
    return true;
  }

  bool close() {
    open_.pop_back();
    keys_.pop_back();
    return true;
  }

  // Where the next value goes. Pointers to open containers stay valid: only the innermost one ever grows.
  Json& place() {
    if (open_.empty()) return root_;
    if (open_.back()->is_object()) return *member_;
    return open_.back()->template get_ref<typename Json::array_t&>().emplace_back();
  }

  const std::string& what_;
  Json root_;
  std::vector<Json*> open_;
  std::vector<std::unordered_set<std::string>> keys_;  // of the open objects
  Json* member_ = nullptr;                             // the value of the last key
};

// Infinity, -Infinity or NaN when `value` is one of them in object form; otherwise 0.
double special_float(const Json& value) {
  if (!value.is_object() || value.size() != 1) return 0;
  const auto member = value.find(kFloatKey);
  if (member == value.end() || !member->is_string()) return 0;
  const std::string& name = member->get_ref<const std::string&>();
  if (name == "Infinity") return std::numeric_limits<double>::infinity();
  if (name == "-Infinity") return -std::numeric_limits<double>::infinity();
  if (name == "NaN") return std::numeric_limits<double>::quiet_NaN();
  return 0;
}

// Whether a double holds ±magnitude exactly: its bits from the first to the last set one must fit the mantissa.
bool fits_double(uint64_t magnitude) {
  return magnitude == 0 ||
         std::bit_width(magnitude) - std::countr_zero(magnitude) <= std::numeric_limits<double>::digits;
}

uint64_t magnitude_of(const Json& integer) {
  if (integer.is_number_unsigned()) return integer.get<uint64_t>();
  const int64_t value = integer.get<int64_t>();
  return value < 0 ? -static_cast<uint64_t>(value) : static_cast<uint64_t>(value);
}

}  // namespace

namespace {

template <class Json>
Json parse_as(std::string_view text, const std::string& what) {
  require(!text.starts_with("\xef\xbb\xbf"), what, ": must be valid JSON, got a byte order mark at byte 0");
  // The parser takes a zero byte for the end of the text, whatever follows.
  const size_t zero = text.find('\0');
  require(zero == std::string_view::npos, what, ": must be valid JSON, got a zero byte at byte ", zero);

  const std::string wrapped = wrap_bare_floats(text);
  const std::string_view source = wrapped.empty() ? text : std::string_view(wrapped);
  DocumentBuilder<Json> builder(what);
  try {
    Json::sax_parse(source.begin(), source.end(), &builder);
  } catch (const SyntaxError& error) {
    fail(concat(what, ": must be valid JSON, got ", error.reason, " at byte ", unwrapped_offset(text, error.offset)));
  }
  return builder.take();
}

}  // namespace

Json parse_json(std::string_view text, const std::string& what) { return parse_as<Json>(text, what); }

OrderedJson parse_ordered_json(std::string_view text, const std::string& what) {
  return parse_as<OrderedJson>(text, what);
}

double json_number(const Json& value, const std::string& what) {
  const double special = special_float(value);
  require(value.is_number() || std::isinf(special), what, ": must be a number, got ", describe(value));
  if (std::isinf(special)) return special;
  require(!value.is_number_integer() || fits_double(magnitude_of(value)), what,
          ": must be a number that a double holds exactly, got ", describe(value));
  const double result = value.get<double>();
  require(!std::isnan(result), what, ": must be a number, got NaN");
  return result;
}

int64_t json_integer(const Json& value, const std::string& what, int64_t minimum, int64_t maximum) {
  constexpr double kTwoTo63 = 0x1p63;
  bool is_integer = false;
  int64_t result = 0;
  if (value.is_number_unsigned()) {
    is_integer = std::in_range<int64_t>(value.get<uint64_t>());
    result = static_cast<int64_t>(value.get<uint64_t>());
  } else if (value.is_number_integer()) {
    is_integer = true;
    result = value.get<int64_t>();
  } else if (value.is_number_float()) {
    const double number = value.get<double>();
    is_integer = std::trunc(number) == number && number >= -kTwoTo63 && number < kTwoTo63;
    if (is_integer) result = static_cast<int64_t>(number);
  }
  if (!is_integer || result < minimum || result > maximum) {
    const std::string upper = maximum == std::numeric_limits<int64_t>::max() ? "" : concat(" and at most ", maximum);
    fail(concat(what, ": must be an integer of at least ", minimum, upper, ", got ", describe(value)));
  }
  return result;
}

std::string quote(std::string_view text) {
  const bool is_short = text.size() <= kMaxQuoted;
  // A character cut in two, like any other invalid UTF-8, shows as U+FFFD.
  const std::string_view shown = is_short ? text : text.substr(0, kMaxQuoted);
  return Json(shown).dump(-1, ' ', false, Json::error_handler_t::replace) + (is_short ? "" : "…");
}

std::string describe(const Json& value) {
  const double special = special_float(value);
  if (std::isnan(special)) return "NaN";
  if (std::isinf(special)) return special > 0 ? "Infinity" : "-Infinity";
  switch (value.type()) {
    case Json::value_t::object: return "an object";
    case Json::value_t::array: return "an array";
    case Json::value_t::string: return quote(value.get_ref<const std::string&>());
    default: return value.dump();
  }
}

}  // namespace elapid
