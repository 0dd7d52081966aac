#pragma once

// What chat templates compute with: Python's values as far as Jinja shows them. A Value is small and cheap to copy;
// everything with an identity (lists, dictionaries, loops, macros) lives in the Heap of one rendering and ends with it,
// so that no cycle leaks and no chain is freed recursively.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace elapid::jinja {

// A rendering that went wrong, where nobody knows the line yet.
struct Failure {
  std::string message;
};

// Memory that is in use. Garbage in the heap counts until the rendering ends.
class Budget {
 public:
  explicit Budget(int64_t bytes) : left_(bytes) {}
  void take(int64_t bytes) {
    if (bytes > left_) throw Failure{"the template needs more memory than is allowed"};
    left_ -= bytes;
  }
  void give(int64_t bytes) { left_ += bytes; }

 private:
  int64_t left_;
};

// Immutable UTF-8.
class Text {
 public:
  // Without a budget: part of a parsed template.
  explicit Text(std::string bytes, bool markup = false, std::shared_ptr<Budget> budget = {});
  ~Text();
  Text(const Text&) = delete;
  Text& operator=(const Text&) = delete;

  [[nodiscard]] const std::string& bytes() const { return bytes_; }
  [[nodiscard]] bool markup() const { return markup_; }  // what |safe and |escape make
  [[nodiscard]] int64_t characters() const { return characters_; }
  [[nodiscard]] bool ascii() const { return characters_ == static_cast<int64_t>(bytes_.size()); }
  // Where character i begins; i may be the number of characters.
  [[nodiscard]] size_t offset(int64_t i) const;

 private:
  std::string bytes_;
  int64_t characters_;
  bool markup_;
  std::shared_ptr<Budget> budget_;
};

class Object {
 public:
  virtual ~Object() = default;
};

class List;
class Dict;
class Range;
class Generator;

class Value {
 public:
  enum class Kind : uint8_t { undefined, none, boolean, integer, real, string, list, dict, range, generator, other };

  Value() = default;                        // undefined
  static Value undefined(std::string why);  // says why when it is used
  static Value none() { return Value(Kind::none); }
  static Value of(bool value);
  static Value of(int64_t value);
  static Value of(double value);
  static Value of(std::shared_ptr<const Text> text);
  static Value of(List* list);
  static Value of(Dict* dict);
  static Value of(Range* range);
  static Value of(Generator* generator);
  static Value of(Object* other);

  [[nodiscard]] Kind kind() const { return kind_; }
  [[nodiscard]] bool is(Kind kind) const { return kind_ == kind; }
  [[nodiscard]] bool is_undefined() const { return kind_ == Kind::undefined; }
  [[nodiscard]] bool is_none() const { return kind_ == Kind::none; }
  [[nodiscard]] bool is_string() const { return kind_ == Kind::string; }
  // What Python counts as a number: booleans, too.
  [[nodiscard]] bool is_integral() const { return kind_ == Kind::integer || kind_ == Kind::boolean; }
  [[nodiscard]] bool is_number() const { return is_integral() || kind_ == Kind::real; }

  [[nodiscard]] bool boolean() const { return integer_ != 0; }
  [[nodiscard]] int64_t integer() const { return integer_; }  // of booleans as well
  [[nodiscard]] double real() const { return kind_ == Kind::real ? real_ : static_cast<double>(integer_); }
  [[nodiscard]] const Text& text() const { return *text_; }
  [[nodiscard]] const std::string& bytes() const { return text_->bytes(); }
  [[nodiscard]] const std::shared_ptr<const Text>& shared_text() const { return text_; }
  [[nodiscard]] Object* object() const { return object_; }
  [[nodiscard]] List& list() const;
  [[nodiscard]] Dict& dict() const;
  [[nodiscard]] Range& range() const;
  [[nodiscard]] Generator& generator() const;
  template <class T>
  [[nodiscard]] T* other() const {
    return kind_ == Kind::other ? dynamic_cast<T*>(object_) : nullptr;
  }

  // Why an undefined value is one.
  [[nodiscard]] std::string why_undefined() const;
  // An Error for uses that Jinja's Undefined refuses.
  void require_defined() const {
    if (is_undefined()) throw Failure{why_undefined()};
  }

 private:
  explicit Value(Kind kind) : kind_(kind) {}

  Kind kind_ = Kind::undefined;
  union {
    int64_t integer_ = 0;
    double real_;
    Object* object_;
  };
  std::shared_ptr<const Text> text_;  // of strings; the reason of undefined values
};

// How large a value is when everything in it is written out, and how deep it nests. Known when it is made, and bounded:
// what walks a value needs no guard of its own, also when a template makes a list of twice the same list thirty times.
struct Extent {
  static constexpr int64_t kMaxWeight = int64_t{1} << 22;
  static constexpr int kMaxDepth = 200;

  int64_t weight = 1;
  int depth = 1;

  void add(const Value& part);  // a Failure when it becomes too much
};
[[nodiscard]] Extent extent_of(const Value& value);

class List final : public Object {
 public:
  // Views are what a dictionary's items(), keys() and values() are: iterable and sized, not indexable.
  enum class Kind : uint8_t { list, tuple, items, keys, values };
  List(Kind of, std::vector<Value> with) : kind(of), items(std::move(with)) {
    for (const Value& item : items) extent.add(item);
  }
  [[nodiscard]] bool indexable() const { return kind == Kind::list || kind == Kind::tuple; }

  const Kind kind;
  const std::vector<Value> items;
  Extent extent;
};

// Keeps the order of insertion.
class Dict final : public Object {
 public:
  struct Entry {
    Value key, value;
  };
  [[nodiscard]] const std::vector<Entry>& entries() const { return entries_; }
  [[nodiscard]] const Value* find(const Value& key) const;  // a Failure when the key cannot be one
  [[nodiscard]] const Value* find(std::string_view key) const;
  void set(const Value& key, Value value);
  [[nodiscard]] const Extent& extent() const { return extent_; }

 private:
  [[nodiscard]] const Value* find_hashed(const std::string& hashed) const;

  std::vector<Entry> entries_;
  std::unordered_map<std::string, size_t> index_;  // only for many entries
  Extent extent_;
};

class Range final : public Object {
 public:
  Range(int64_t from, int64_t to, int64_t by);
  [[nodiscard]] int64_t at(int64_t i) const { return start + i * step; }

  int64_t start, stop, step, size;
};

// The elements of something iterable, one after another.
class Source {
 public:
  explicit Source(Value of) : of_(std::move(of)) {}
  // A Failure when the value cannot be iterated.
  static void require_iterable(const Value& value);
  std::optional<Value> next();

 private:
  Value of_;
  size_t at_ = 0;
};

// A one-time iterator, as map, select and others make it. Always true.
class Generator : public Object {
 public:
  virtual std::optional<Value> next() = 0;
  Extent extent;  // of what it draws from
};

// Everything that one rendering makes.
class Heap {
 public:
  explicit Heap(int64_t bytes) : budget_(std::make_shared<Budget>(bytes)) {}

  template <class T, class... Args>
  T* make(Args&&... args) {
    budget_->take(sizeof(T) + sizeof(void*));
    auto owned = std::make_unique<T>(std::forward<Args>(args)...);
    T* const made = owned.get();
    objects_.push_back(std::move(owned));
    return made;
  }
  void charge(int64_t bytes) { budget_->take(bytes); }

  [[nodiscard]] Value string(std::string bytes, bool markup = false);
  [[nodiscard]] Value list(std::vector<Value> items, List::Kind kind = List::Kind::list);
  [[nodiscard]] Value tuple(std::vector<Value> items) { return list(std::move(items), List::Kind::tuple); }
  // Sets and accounts for it.
  void set(Dict& dict, const Value& key, Value value);

 private:
  std::shared_ptr<Budget> budget_;
  std::vector<std::unique_ptr<Object>> objects_;
};

// --- What Python's built-ins say about values

[[nodiscard]] bool truthy(const Value& value);
// len(), or nothing where Python raises a TypeError.
[[nodiscard]] std::optional<int64_t> size_of(const Value& value);
[[nodiscard]] bool equal(const Value& a, const Value& b);
// a < b; a Failure for what Python does not order.
[[nodiscard]] bool less(const Value& a, const Value& b);
[[nodiscard]] bool contains(const Value& container, const Value& item);
[[nodiscard]] std::string_view type_name(const Value& value);

[[nodiscard]] std::string real_to_string(double value);
void append_string(const Value& value, std::string& out);  // str()
void append_repr(const Value& value, std::string& out);    // repr()
[[nodiscard]] std::string to_string(const Value& value);

struct JsonStyle {
  bool ensure_ascii = false, sort_keys = false;
  std::optional<std::string> indent;
  std::string item_separator = ", ", key_separator = ": ";
};
// json.dumps().
[[nodiscard]] std::string to_json(const Value& value, const JsonStyle& style);

// What an iterable yields, up to a Failure when memory runs out.
[[nodiscard]] std::vector<Value> elements(const Value& iterable, Heap& heap);

}  // namespace elapid::jinja
