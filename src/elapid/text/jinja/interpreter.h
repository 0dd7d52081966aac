#pragma once

// Runs a parsed template once: variables in, text out, within limits that no template can exceed.

#include "elapid/text/jinja/ast.h"
#include "elapid/text/jinja/builtins.h"

#include <ctime>
#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace elapid::jinja {

struct Limits {
  int64_t steps = 0, bytes = 0, output = 0;
};

// Objects that only templates know: functions, macros, loops, namespaces.
class Special : public Object {
 public:
  virtual std::optional<Value> attribute(Interpreter& on, std::string_view name);
  virtual bool callable() const { return false; }
  virtual Value call(Interpreter& on, const Arguments& arguments);
  [[nodiscard]] virtual std::string name() const = 0;  // for errors and when it is printed
};

class Namespace final : public Special {
 public:
  explicit Namespace(Dict& attributes) : attributes_(&attributes) {}
  std::optional<Value> attribute(Interpreter& on, std::string_view name) override;
  [[nodiscard]] std::string name() const override { return "Namespace"; }
  [[nodiscard]] Dict& attributes() { return *attributes_; }

 private:
  Dict* attributes_;
};

// Variables by name; inner scopes see outer ones.
struct Scope {
  Scope* outer = nullptr;
  bool captured = false;  // by a macro, which may outlive the block
  std::vector<std::pair<NameId, Value>> values;

  [[nodiscard]] const Value* find(NameId name) const;
  void set(NameId name, Value value);
};

class Interpreter {
 public:
  // Everything given must outlive the interpreter. `now` is what strftime_now() tells.
  Interpreter(const Template& of, const Limits& limits, std::time_t now);

  void define(const std::string& name, const Value& value);

  struct Rendered {
    std::string text;
    std::vector<std::pair<size_t, size_t>> generations;  // bytes [begin, end) of {% generation %} blocks
  };
  // Throws Failure; line() is then where.
  Rendered run();
  [[nodiscard]] int line() const { return line_; }

  // --- For builtins

  [[nodiscard]] Heap& heap() { return heap_; }
  [[nodiscard]] std::time_t now() const { return now_; }
  // Accounts for work; bytes count less than steps.
  void spend(int64_t steps);
  void spend_bytes(size_t bytes) { spend(static_cast<int64_t>(bytes / kBytesPerStep)); }

  [[nodiscard]] Value string(std::string text, bool markup = false) { return heap_.string(std::move(text), markup); }
  [[nodiscard]] Value attribute(const Value& of, const Value& name);  // a.b
  [[nodiscard]] Value item(const Value& of, const Value& key);        // a[b]
  [[nodiscard]] Value call(const Value& callee, const Arguments& arguments);
  [[nodiscard]] Value call_method(const Method& method, const Value& self, const Arguments& arguments);
  [[nodiscard]] Value apply(const Filter* filter, std::string_view name, const Value& value,
                            const Arguments& arguments);
  [[nodiscard]] bool apply(const Test* test, std::string_view name, const Value& value, const Arguments& arguments);
  // What str() makes, with its work accounted for.
  [[nodiscard]] std::string text_of(const Value& value);

 private:
  friend class Macro;
  friend class Loop;
  enum class Flow : uint8_t { on, break_loop, continue_loop };
  class Depth;
  class Inner;

  static constexpr size_t kBytesPerStep = 64;

  Flow run(const Body& body);
  Flow run(const Statement& statement);
  Flow run_loop(const Statement& statement);
  void run_with(const Statement& statement);
  std::string buffered(const Body& body, Flow& flow);
  void emit(std::string_view text);
  void assign(const Target& target, const Value& value);
  Value macro_of(const Statement& statement);
  Value call_macro(class Macro& macro, const Arguments& arguments);

  Value evaluate(const Expression& expression);
  Value evaluate_call(const Expression& expression, const Value* caller);
  Value evaluate_filter(const Expression& expression, const Value* value);
  Value evaluate_compare(const Expression& expression);
  bool compare(Comparison comparison, const Value& a, const Value& b);
  Arguments arguments_of(const CallArguments& arguments);
  Value lookup(NameId name);
  Value member(const Value& of, std::string_view name);  // what getattr() finds, undefined when nothing

  Scope& open_scope(Scope* outer);
  void close_scope(Scope& scope);

  const Template& template_;
  Limits limits_;
  std::time_t now_;
  Heap heap_;
  int64_t steps_ = 0;
  int line_ = 1, depth_ = 0;
  std::vector<Value> globals_;  // by name
  std::vector<bool> defined_;
  std::deque<Scope> scopes_;
  std::vector<Scope*> free_scopes_;
  Scope* scope_ = nullptr;
  std::string output_;
  std::string* out_ = &output_;
  std::vector<std::pair<size_t, size_t>> generations_;
};

}  // namespace elapid::jinja
