#pragma once

// Jinja's filters and tests, Python's methods of strings, lists and dictionaries, and the functions that templates may
// call. Found by name; what is not here is an error where it is used.

#include "elapid/text/jinja/value.h"

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace elapid::jinja {

class Interpreter;

// Of one call, evaluated.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> keywords;
};

// Arguments by the names of the parameters that take them.
class Bound {
 public:
  // A Failure for arguments that no parameter takes, and when one of the first `required` gets none.
  Bound(std::string_view function, const Arguments& arguments, std::initializer_list<const char*> parameters,
        size_t required = 0);

  [[nodiscard]] bool has(size_t i) const { return values_[i] != nullptr; }
  [[nodiscard]] const Value& operator[](size_t i) const { return *values_[i]; }
  // Of an absent argument, or of none where `none_is_absent`.
  [[nodiscard]] bool absent(size_t i) const { return !has(i) || values_[i]->is_none(); }
  [[nodiscard]] bool flag(size_t i, bool otherwise) const { return has(i) ? truthy(*values_[i]) : otherwise; }
  [[nodiscard]] int64_t integer(size_t i, int64_t otherwise) const;
  // A Failure when it is no string.
  [[nodiscard]] std::string_view string(size_t i, std::string_view otherwise) const;

 private:
  std::string_view function_;
  std::vector<const Value*> values_;
};

struct Filter {
  const char* name;
  Value (*run)(Interpreter& on, const Value& value, const Arguments& arguments);
};
struct Test {
  const char* name;
  bool (*run)(Interpreter& on, const Value& value, const Arguments& arguments);
};
struct Method {
  const char* name;
  Value (*run)(Interpreter& on, const Value& self, const Arguments& arguments);  // null: the sandbox forbids it
};
struct Function {
  const char* name;
  Value (*run)(Interpreter& on, const Arguments& arguments);
};

// Null when there is none of that name.
[[nodiscard]] const Filter* find_filter(std::string_view name);
[[nodiscard]] const Test* find_test(std::string_view name);
[[nodiscard]] const Method* find_method(const Value& of, std::string_view name);
[[nodiscard]] const Function* find_function(std::string_view name);

// Python's + - * / // % ** on values; `op` is one of them as Op names them in ast.h.
enum class Arithmetic : uint8_t { add, subtract, multiply, divide, floor_divide, modulo, power };
[[nodiscard]] Value arithmetic(Interpreter& on, Arithmetic op, const Value& a, const Value& b);
[[nodiscard]] Value negated(const Value& value);

// a[begin:end:step]; absent bounds are none.
[[nodiscard]] Value slice(Interpreter& on, const Value& of, const Value& begin, const Value& end, const Value& step);

// "…" % values and "…".format(arguments).
[[nodiscard]] std::string format_percent(std::string_view pattern, const Value& values);
[[nodiscard]] std::string format_braces(Interpreter& on, std::string_view pattern, const Arguments& arguments);

}  // namespace elapid::jinja
