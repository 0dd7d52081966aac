#include "elapid/text/jinja/interpreter.h"

#include "elapid/core/error.h"
#include "elapid/io/json.h"

#include <algorithm>
#include <utility>

namespace elapid::jinja {
namespace {

// Expressions and statements inside one another, over all macros that call each other.
constexpr int kMaxDepth = 1000;

Value literal(std::string text) { return Value::of(std::make_shared<const Text>(std::move(text))); }

// A function that templates can call.
class Builtin final : public Special {
 public:
  explicit Builtin(const Function& function) : function_(function) {}
  bool callable() const override { return true; }
  Value call(Interpreter& on, const Arguments& arguments) override { return function_.run(on, arguments); }
  [[nodiscard]] std::string name() const override { return concat("function ", function_.name); }

 private:
  const Function& function_;
};

class BoundMethod final : public Special {
 public:
  BoundMethod(const Method& method, Value self) : method_(method), self_(std::move(self)) {}
  bool callable() const override { return true; }
  Value call(Interpreter& on, const Arguments& arguments) override { return on.call_method(method_, self_, arguments); }
  [[nodiscard]] std::string name() const override { return concat("built-in method ", method_.name); }

 private:
  const Method& method_;
  Value self_;
};

// `loop` in the body of a for.
class LoopMethod;

}  // namespace

// --- Objects

std::optional<Value> Special::attribute(Interpreter& /*on*/, std::string_view /*name*/) { return {}; }
Value Special::call(Interpreter& /*on*/, const Arguments& /*arguments*/) {
  throw Failure{concat("'", name(), "' object is not callable")};
}

std::optional<Value> Namespace::attribute(Interpreter& /*on*/, std::string_view name) {
  const Value* const found = attributes_->find(name);
  return found == nullptr ? std::nullopt : std::optional(*found);
}

class Macro final : public Special {
 public:
  Macro(const Statement& statement, Scope* closure) : statement_(&statement), closure_(closure) {}
  bool callable() const override { return true; }
  Value call(Interpreter& on, const Arguments& arguments) override { return on.call_macro(*this, arguments); }
  std::optional<Value> attribute(Interpreter& on, std::string_view name) override {
    if (name == "name") return on.string(routine().name);
    return {};
  }
  [[nodiscard]] std::string name() const override { return concat("Macro ", quote(routine().name)); }
  [[nodiscard]] const Routine& routine() const { return statement_->routine; }
  [[nodiscard]] const Body& body() const { return statement_->body; }
  [[nodiscard]] Scope* closure() const { return closure_; }

 private:
  const Statement* statement_;
  Scope* closure_;
};

class Loop final : public Special {
 public:
  Loop(Interpreter& on, const Statement& statement, const Value& over)
      : on_(on), statement_(statement), over_(over), source_(over) {}

  // The next item becomes the current one.
  bool advance() {
    std::optional<Value> item = take();
    if (!item) return false;
    ++index0_;
    before_ = std::exchange(current_, std::move(*item));
    return true;
  }
  [[nodiscard]] const Value& current() const { return current_; }

  std::optional<Value> attribute(Interpreter& on, std::string_view name) override;
  bool callable() const override { return true; }
  Value call(Interpreter& /*on*/, const Arguments& /*arguments*/) override {
    throw Failure{"the loop must have the 'recursive' marker to be called recursively"};
  }
  [[nodiscard]] std::string name() const override { return "LoopContext"; }

  Value cycle(const Arguments& arguments) const {
    if (arguments.positional.empty()) throw Failure{"no items for cycling given"};
    return arguments.positional[static_cast<size_t>(index0_) % arguments.positional.size()];
  }
  Value changed(const Arguments& arguments) {
    const std::vector<Value>& now = arguments.positional;
    const bool same = last_ && last_->size() == now.size() && std::equal(now.begin(), now.end(), last_->begin(), equal);
    if (!same) last_ = now;
    return Value::of(!same);
  }

 private:
  std::optional<Value> take() {
    if (!ahead_.empty()) {
      Value item = std::move(ahead_.front());
      ahead_.pop_front();
      return item;
    }
    return pull();
  }
  // The next item that the loop's condition lets through.
  std::optional<Value> pull();
  bool peek() {
    if (ahead_.empty()) {
      if (std::optional<Value> item = pull()) ahead_.push_back(std::move(*item));
    }
    return !ahead_.empty();
  }
  int64_t length() {
    if (!length_) {
      const auto size = size_of(over_);
      if (size && !statement_.test) {
        length_ = *size;
      } else {
        while (std::optional<Value> item = pull()) {
          on_.heap().charge(sizeof(Value));
          ahead_.push_back(std::move(*item));
        }
        length_ = index0_ + 1 + std::ssize(ahead_);
      }
    }
    return *length_;
  }

  Interpreter& on_;
  const Statement& statement_;
  Value over_;
  Source source_;
  std::deque<Value> ahead_;
  int64_t index0_ = -1;
  Value before_, current_;
  std::optional<int64_t> length_;
  std::optional<std::vector<Value>> last_;
};

namespace {

class LoopMethod final : public Special {
 public:
  LoopMethod(Loop& loop, bool cycles) : loop_(loop), cycles_(cycles) {}
  bool callable() const override { return true; }
  Value call(Interpreter& /*on*/, const Arguments& arguments) override {
    return cycles_ ? loop_.cycle(arguments) : loop_.changed(arguments);
  }
  [[nodiscard]] std::string name() const override { return "method of LoopContext"; }

 private:
  Loop& loop_;
  bool cycles_;
};

}  // namespace

std::optional<Value> Loop::attribute(Interpreter& on, std::string_view name) {
  if (name == "index") return Value::of(index0_ + 1);
  if (name == "index0") return Value::of(index0_);
  if (name == "first") return Value::of(index0_ == 0);
  if (name == "last") return Value::of(!peek());
  if (name == "length") return Value::of(length());
  if (name == "revindex") return Value::of(length() - index0_);
  if (name == "revindex0") return Value::of(length() - index0_ - 1);
  if (name == "depth") return Value::of(int64_t{1});
  if (name == "depth0") return Value::of(int64_t{0});
  if (name == "previtem") return index0_ == 0 ? Value::undefined("there is no previous item") : before_;
  if (name == "nextitem") return peek() ? ahead_.front() : Value::undefined("there is no next item");
  if (name == "cycle" || name == "changed") {
    return Value::of(static_cast<Object*>(on.heap().make<LoopMethod>(*this, name == "cycle")));
  }
  return {};
}

// --- Scopes

const Value* Scope::find(NameId name) const {
  for (const auto& [known, value] : values) {
    if (known == name) return &value;
  }
  return nullptr;
}

void Scope::set(NameId name, Value value) {
  for (auto& [known, old] : values) {
    if (known == name) {
      old = std::move(value);
      return;
    }
  }
  values.emplace_back(name, std::move(value));
}

Scope& Interpreter::open_scope(Scope* outer) {
  if (free_scopes_.empty()) {
    heap_.charge(sizeof(Scope) + 4 * sizeof(Value));
    free_scopes_.push_back(&scopes_.emplace_back());
  }
  Scope& scope = *free_scopes_.back();
  free_scopes_.pop_back();
  scope.outer = outer;
  return scope;
}

void Interpreter::close_scope(Scope& scope) {
  if (scope.captured) return;
  scope.values.clear();
  free_scopes_.push_back(&scope);
}

// Runs inside a scope of its own for as long as it lives.
class Interpreter::Inner {
 public:
  explicit Inner(Interpreter& on) : Inner(on, on.scope_) {}
  Inner(Interpreter& on, Scope* outer) : on_(on), before_(on.scope_), scope_(on.open_scope(outer)) {
    on.scope_ = &scope_;
  }
  ~Inner() {
    on_.scope_ = before_;
    on_.close_scope(scope_);
  }
  Inner(const Inner&) = delete;
  Inner& operator=(const Inner&) = delete;
  [[nodiscard]] Scope& scope() { return scope_; }

 private:
  Interpreter& on_;
  Scope* before_;
  Scope& scope_;
};

class Interpreter::Depth {
 public:
  explicit Depth(Interpreter& on) : on_(on) {
    if (++on_.depth_ <= kMaxDepth) return;
    --on_.depth_;
    throw Failure{concat("macros and expressions nest more than ", kMaxDepth, " deep")};
  }
  ~Depth() { --on_.depth_; }
  Depth(const Depth&) = delete;
  Depth& operator=(const Depth&) = delete;

 private:
  Interpreter& on_;
};

std::optional<Value> Loop::pull() {
  while (std::optional<Value> item = source_.next()) {
    on_.spend(1);
    if (!statement_.test) return item;
    Interpreter::Inner inner(on_);
    on_.assign(statement_.target, *item);
    if (truthy(on_.evaluate(*statement_.test))) return item;
  }
  return {};
}

// --- Running

Interpreter::Interpreter(const Template& of, const Limits& limits, std::time_t now)
    : template_(of),
      limits_(limits),
      now_(now),
      heap_(limits.bytes),
      globals_(of.names.size()),
      defined_(of.names.size(), false) {}

void Interpreter::define(const std::string& name, const Value& value) {
  const auto found = std::find(template_.names.begin(), template_.names.end(), name);
  if (found == template_.names.end()) return;
  const auto id = static_cast<size_t>(found - template_.names.begin());
  globals_[id] = value;
  defined_[id] = true;
}

Interpreter::Rendered Interpreter::run() {
  for (size_t id = 0; id < template_.names.size(); ++id) {
    if (defined_[id]) continue;
    if (const Function* const function = find_function(template_.names[id])) {
      globals_[id] = Value::of(static_cast<Object*>(heap_.make<Builtin>(*function)));
      defined_[id] = true;
    }
  }
  scope_ = &open_scope(nullptr);
  run(template_.body);
  return {std::move(output_), std::move(generations_)};
}

void Interpreter::spend(int64_t steps) {
  steps_ += steps;
  if (steps_ > limits_.steps) throw Failure{concat("the template takes more than ", limits_.steps, " steps")};
}

void Interpreter::emit(std::string_view text) {
  spend_bytes(text.size());
  if (static_cast<int64_t>(out_->size() + text.size()) > limits_.output) {
    throw Failure{concat("the template writes more than ", limits_.output, " bytes")};
  }
  out_->append(text);
}

std::string Interpreter::text_of(const Value& value) {
  spend(extent_of(value).weight);
  if (const auto* const special = value.other<Special>()) return concat("<", special->name(), ">");
  return to_string(value);
}

Interpreter::Flow Interpreter::run(const Body& body) {
  const Depth depth(*this);
  for (const Statement& statement : body) {
    if (const Flow flow = run(statement); flow != Flow::on) return flow;
  }
  return Flow::on;
}

Interpreter::Flow Interpreter::run(const Statement& statement) {
  line_ = statement.line;
  spend(1);
  switch (statement.kind) {
    case Statement::Kind::text: emit(statement.text); break;
    case Statement::Kind::print:
      for (const ExpressionPtr& value : statement.values) {
        const Value printed = evaluate(*value);
        if (printed.is_string()) {
          emit(printed.bytes());
        } else {
          emit(text_of(printed));
        }
      }
      break;
    case Statement::Kind::branch: return run(truthy(evaluate(*statement.value)) ? statement.body : statement.otherwise);
    case Statement::Kind::loop: return run_loop(statement);
    case Statement::Kind::set: assign(statement.target, evaluate(*statement.value)); break;
    case Statement::Kind::set_block: {
      Flow flow = Flow::on;
      Value value;
      {
        Inner inner(*this);
        value = string(buffered(statement.body, flow));
        if (statement.value) value = evaluate_filter(*statement.value, &value);
      }
      if (flow != Flow::on) return flow;
      assign(statement.target, value);
      break;
    }
    case Statement::Kind::with: run_with(statement); break;
    case Statement::Kind::filter: {
      Inner inner(*this);
      Flow flow = Flow::on;
      const Value value = string(buffered(statement.body, flow));
      if (flow != Flow::on) return flow;
      emit(text_of(evaluate_filter(*statement.value, &value)));
      break;
    }
    case Statement::Kind::macro: scope_->set(statement.name, macro_of(statement)); break;
    case Statement::Kind::call: {
      const Value caller = macro_of(statement);
      emit(text_of(evaluate_call(*statement.value, &caller)));
      break;
    }
    case Statement::Kind::generation: {
      // In text that goes elsewhere first, its place is where that text ends up at the earliest.
      const size_t begin = output_.size(), outer = out_->size();
      Inner inner(*this);
      const Flow flow = run(statement.body);
      if (generations_.size() % 64 == 0) heap_.charge(64 * sizeof(generations_[0]));
      generations_.emplace_back(begin, begin + (out_->size() - outer));
      return flow;
    }
    case Statement::Kind::break_loop: return Flow::break_loop;
    case Statement::Kind::continue_loop: return Flow::continue_loop;
  }
  return Flow::on;
}

Interpreter::Flow Interpreter::run_loop(const Statement& statement) {
  const Value over = evaluate(*statement.value);
  Source::require_iterable(over);
  auto* const loop = heap_.make<Loop>(*this, statement, over);
  const Value itself = Value::of(static_cast<Object*>(loop));
  bool any = false;
  while (loop->advance()) {
    line_ = statement.line;
    any = true;
    Inner inner(*this);
    inner.scope().set(template_.loop, itself);
    assign(statement.target, loop->current());
    if (run(statement.body) == Flow::break_loop) break;
  }
  if (any || statement.otherwise.empty()) return Flow::on;
  Inner inner(*this);
  return run(statement.otherwise);
}

void Interpreter::run_with(const Statement& statement) {
  std::vector<Value> values;
  for (const ExpressionPtr& value : statement.values) values.push_back(evaluate(*value));
  Inner inner(*this);
  for (size_t i = 0; i < values.size(); ++i) assign(statement.targets[i], values[i]);
  run(statement.body);
}

std::string Interpreter::buffered(const Body& body, Flow& flow) {
  std::string text;
  std::string* const outer = std::exchange(out_, &text);
  try {
    flow = run(body);
  } catch (...) {
    out_ = outer;
    throw;
  }
  out_ = outer;
  return text;
}

void Interpreter::assign(const Target& target, const Value& value) {
  if (target.is_tuple) {
    const Depth depth(*this);
    const std::vector<Value> items = elements(value, heap_);
    spend(std::ssize(items));
    if (items.size() != target.parts.size()) {
      throw Failure{concat("cannot unpack ", items.size(), " values into ", target.parts.size())};
    }
    for (size_t i = 0; i < items.size(); ++i) assign(target.parts[i], items[i]);
    return;
  }
  if (target.attribute.empty()) {
    scope_->set(target.name, value);
    return;
  }
  auto* const space = lookup(target.name).other<Namespace>();
  if (space == nullptr) throw Failure{"cannot assign attribute on non-namespace object"};
  if (const Value* const known = space->attributes().find(target.attribute)) {
    const_cast<Value&>(*known) = value;  // of an object that is not const: namespaces are there to be changed
  } else {
    heap_.set(space->attributes(), literal(target.attribute), value);
  }
}

Value Interpreter::macro_of(const Statement& statement) {
  for (Scope* scope = scope_; scope != nullptr && !scope->captured; scope = scope->outer) scope->captured = true;
  return Value::of(static_cast<Object*>(heap_.make<Macro>(statement, scope_)));
}

Value Interpreter::call_macro(Macro& macro, const Arguments& arguments) {
  const Routine& routine = macro.routine();
  const Depth depth(*this);
  Inner inner(*this, macro.closure());
  const int line = line_;

  auto keywords = arguments.keywords;
  const auto take = [&](std::string_view name) -> std::optional<Value> {
    const auto found =
        std::find_if(keywords.begin(), keywords.end(), [&](const auto& pair) { return pair.first == name; });
    if (found == keywords.end()) return {};
    Value value = std::move(found->second);
    keywords.erase(found);
    return value;
  };
  std::vector<size_t> missing;
  for (size_t i = 0; i < routine.parameters.size(); ++i) {
    const Parameter& parameter = routine.parameters[i];
    if (i < arguments.positional.size()) {
      inner.scope().set(parameter.name, arguments.positional[i]);
    } else if (std::optional<Value> value = take(parameter.spelling)) {
      inner.scope().set(parameter.name, std::move(*value));
    } else {
      missing.push_back(i);
    }
  }
  if (routine.takes_caller) {
    std::optional<Value> caller = take("caller");
    inner.scope().set(routine.caller, caller && !caller->is_none() ? *caller : Value::undefined("No caller defined"));
  }
  if (routine.takes_keywords) {
    auto* const rest = heap_.make<Dict>();
    for (const auto& [name, value] : keywords) heap_.set(*rest, literal(name), value);
    inner.scope().set(routine.keywords, Value::of(rest));
  } else if (!keywords.empty()) {
    throw Failure{concat("macro ", quote(routine.name), " takes no keyword argument ", quote(keywords.front().first))};
  }
  const size_t taken = std::min(arguments.positional.size(), routine.parameters.size());
  if (routine.takes_positional) {
    const auto rest = arguments.positional.begin() + static_cast<std::ptrdiff_t>(taken);
    inner.scope().set(routine.positional, heap_.tuple({rest, arguments.positional.end()}));
  } else if (taken < arguments.positional.size()) {
    throw Failure{concat("macro ", quote(routine.name), " takes not more than ", taken, " argument(s)")};
  }
  // Defaults see the parameters before them.
  for (const size_t i : missing) {
    const Parameter& parameter = routine.parameters[i];
    inner.scope().set(parameter.name,
                      parameter.otherwise
                          ? evaluate(*parameter.otherwise)
                          : Value::undefined(concat("parameter ", quote(parameter.spelling), " was not provided")));
  }
  Flow flow = Flow::on;
  Value result = string(buffered(macro.body(), flow));
  line_ = line;
  return result;
}

// --- Expressions

Value Interpreter::lookup(NameId name) {
  for (const Scope* scope = scope_; scope != nullptr; scope = scope->outer) {
    if (const Value* const found = scope->find(name)) return *found;
  }
  const auto id = static_cast<size_t>(name);
  return defined_[id] ? globals_[id] : Value::undefined(concat("'", template_.names[id], "' is undefined"));
}

Value Interpreter::evaluate(const Expression& expression) {
  const Depth depth(*this);
  spend(1);
  line_ = expression.line;
  const auto part = [&](size_t i) { return evaluate(*expression.parts[i]); };
  const auto binary = [&](Arithmetic op) {
    const Value a = part(0), b = part(1);
    line_ = expression.line;
    return arithmetic(*this, op, a, b);
  };
  switch (expression.op) {
    case Op::constant: return expression.constant;
    case Op::name: return lookup(expression.name);
    case Op::tuple:
    case Op::list: {
      std::vector<Value> items;
      items.reserve(expression.parts.size());
      for (const ExpressionPtr& item : expression.parts) items.push_back(evaluate(*item));
      return heap_.list(std::move(items), expression.op == Op::tuple ? List::Kind::tuple : List::Kind::list);
    }
    case Op::dict: {
      auto* const made = heap_.make<Dict>();
      for (size_t i = 0; i < expression.parts.size(); i += 2) {
        const Value key = part(i);
        heap_.set(*made, key, part(i + 1));
      }
      return Value::of(made);
    }
    case Op::attribute: {
      const Value of = part(0);
      return attribute(of, expression.constant);
    }
    case Op::item: {
      const Value of = part(0);
      return item(of, part(1));
    }
    case Op::slice: {
      const Value of = part(0);
      const auto bound = [&](size_t i) { return expression.parts[i] ? part(i) : Value::none(); };
      const Value begin = bound(1), end = bound(2);
      return slice(*this, of, begin, end, bound(3));
    }
    case Op::call: return evaluate_call(expression, nullptr);
    case Op::filter: return evaluate_filter(expression, nullptr);
    case Op::test: {
      const Value value = part(0);
      return Value::of(apply(expression.test, expression.text, value, arguments_of(expression.arguments)));
    }
    case Op::negate: return negated(part(0));
    case Op::plus: {
      const Value value = part(0);
      value.require_defined();
      if (!value.is_number()) throw Failure{concat("bad operand type for unary +: '", type_name(value), "'")};
      return value.is(Value::Kind::boolean) ? Value::of(value.integer()) : value;
    }
    case Op::logical_not: return Value::of(!truthy(part(0)));
    case Op::logical_and: {
      const Value first = part(0);
      return truthy(first) ? part(1) : first;
    }
    case Op::logical_or: {
      const Value first = part(0);
      return truthy(first) ? first : part(1);
    }
    case Op::conditional:
      if (truthy(part(0))) return part(1);
      if (expression.parts[2]) return part(2);
      return Value::undefined("the inline if-expression evaluated to false and no else section was defined");
    case Op::compare: return evaluate_compare(expression);
    case Op::concat: {
      std::string text;
      for (const ExpressionPtr& piece : expression.parts) text += text_of(evaluate(*piece));
      return string(std::move(text));
    }
    case Op::add: return binary(Arithmetic::add);
    case Op::subtract: return binary(Arithmetic::subtract);
    case Op::multiply: return binary(Arithmetic::multiply);
    case Op::divide: return binary(Arithmetic::divide);
    case Op::floor_divide: return binary(Arithmetic::floor_divide);
    case Op::modulo: return binary(Arithmetic::modulo);
    case Op::power: return binary(Arithmetic::power);
  }
  return {};
}

Arguments Interpreter::arguments_of(const CallArguments& arguments) {
  Arguments made;
  made.positional.reserve(arguments.positional.size());
  for (const ExpressionPtr& value : arguments.positional) made.positional.push_back(evaluate(*value));
  for (const auto& [name, value] : arguments.keywords) made.keywords.emplace_back(name, evaluate(*value));
  if (arguments.all_positional) {
    for (Value& value : elements(evaluate(*arguments.all_positional), heap_))
      made.positional.push_back(std::move(value));
  }
  if (arguments.all_keywords) {
    const Value all = evaluate(*arguments.all_keywords);
    if (!all.is(Value::Kind::dict)) throw Failure{concat("argument after ** must be a mapping, not ", type_name(all))};
    for (const Dict::Entry& entry : all.dict().entries()) {
      if (!entry.key.is_string()) throw Failure{"keywords must be strings"};
      const auto known = [&](const auto& pair) { return pair.first == entry.key.bytes(); };
      if (std::any_of(made.keywords.begin(), made.keywords.end(), known)) {
        throw Failure{concat("got multiple values for keyword argument ", quote(entry.key.bytes()))};
      }
      made.keywords.emplace_back(entry.key.bytes(), entry.value);
      spend(std::ssize(made.keywords));
    }
  }
  return made;
}

Value Interpreter::evaluate_call(const Expression& expression, const Value* caller) {
  const Expression& callee = *expression.parts[0];
  if (callee.op == Op::attribute && caller == nullptr) {
    // A method right where it is called needs no object of its own.
    const Value self = evaluate(*callee.parts[0]);
    const Method* const method = find_method(self, callee.text);
    if (method != nullptr && method->run != nullptr) {
      const Arguments arguments = arguments_of(expression.arguments);
      line_ = expression.line;
      return call_method(*method, self, arguments);
    }
    const Value function = attribute(self, callee.constant);
    const Arguments arguments = arguments_of(expression.arguments);
    line_ = expression.line;
    return call(function, arguments);
  }
  const Value function = evaluate(callee);
  Arguments arguments = arguments_of(expression.arguments);
  if (caller != nullptr) arguments.keywords.emplace_back("caller", *caller);
  line_ = expression.line;
  return call(function, arguments);
}

Value Interpreter::call_method(const Method& method, const Value& self, const Arguments& arguments) {
  if (method.run == nullptr)
    throw Failure{concat("the sandbox does not allow ", type_name(self), ".", method.name, "()")};
  spend(1);
  if (self.is_string()) spend_bytes(self.bytes().size());
  return method.run(*this, self, arguments);
}

Value Interpreter::call(const Value& callee, const Arguments& arguments) {
  callee.require_defined();
  auto* const special = callee.other<Special>();
  if (special == nullptr) throw Failure{concat("'", type_name(callee), "' object is not callable")};
  spend(1);
  return special->call(*this, arguments);
}

Value Interpreter::evaluate_filter(const Expression& expression, const Value* value) {
  // In a filter block, the innermost of the chain filters the block's text.
  const Expression* const inner = expression.parts[0].get();
  Value input;
  if (inner == nullptr) {
    input = *value;
  } else if (value != nullptr && inner->op == Op::filter) {
    const Depth depth(*this);
    input = evaluate_filter(*inner, value);
  } else {
    input = evaluate(*inner);
  }
  const Arguments arguments = arguments_of(expression.arguments);
  line_ = expression.line;
  return apply(expression.filter, expression.text, input, arguments);
}

Value Interpreter::apply(const Filter* filter, std::string_view name, const Value& value, const Arguments& arguments) {
  if (filter == nullptr) throw Failure{concat("no filter named ", quote(name))};
  const Depth depth(*this);
  spend(1);
  if (value.is_string()) spend_bytes(value.bytes().size());
  return filter->run(*this, value, arguments);
}

bool Interpreter::apply(const Test* test, std::string_view name, const Value& value, const Arguments& arguments) {
  if (test == nullptr) throw Failure{concat("no test named ", quote(name))};
  spend(1);
  return test->run(*this, value, arguments);
}

Value Interpreter::evaluate_compare(const Expression& expression) {
  Value left = evaluate(*expression.parts[0]);
  for (size_t i = 0; i < expression.comparisons.size(); ++i) {
    Value right = evaluate(*expression.parts[i + 1]);
    line_ = expression.line;
    if (!compare(expression.comparisons[i], left, right)) return Value::of(false);
    left = std::move(right);
  }
  return Value::of(true);
}

bool Interpreter::compare(Comparison comparison, const Value& a, const Value& b) {
  const bool membership = comparison == Comparison::in || comparison == Comparison::not_in;
  const int64_t weight_a = extent_of(a).weight, weight_b = extent_of(b).weight;
  if (!membership) {
    spend(std::min(weight_a, weight_b));
  } else {
    spend(b.is(Value::Kind::dict) ? weight_a : weight_b);
  }
  switch (comparison) {
    case Comparison::eq: return equal(a, b);
    case Comparison::ne: return !equal(a, b);
    case Comparison::lt: return less(a, b);
    case Comparison::gt: return less(b, a);
    // Not the other one's opposite: nothing is ordered against NaN.
    case Comparison::le: return less(a, b) || equal(a, b);
    case Comparison::ge: return less(b, a) || equal(a, b);
    case Comparison::in: return contains(b, a);
    case Comparison::not_in: return !contains(b, a);
  }
  return false;
}

// --- Members

namespace {

Value unknown_member(const Value& of, const Value& name) {
  const std::string_view type = type_name(of);
  const std::string object = of.is_none() ? "None" : concat(type, " object");
  if (name.is_string()) return Value::undefined(concat("'", object, "' has no attribute ", quote(name.bytes())));
  return Value::undefined(
      concat(object, " has no element ", name.is(Value::Kind::integer) ? to_string(name) : "of that key"));
}

}  // namespace

Value Interpreter::member(const Value& of, std::string_view name) {
  if (name.starts_with('_')) return {};
  if (const Method* const method = find_method(of, name)) {
    if (method->run == nullptr) {
      return Value::undefined(concat("access to attribute '", name, "' of '", type_name(of), "' object is unsafe"));
    }
    return Value::of(static_cast<Object*>(heap_.make<BoundMethod>(*method, of)));
  }
  if (auto* const special = of.other<Special>()) return special->attribute(*this, name).value_or(Value());
  return {};
}

Value Interpreter::attribute(const Value& of, const Value& name) {
  of.require_defined();
  const std::string& spelled = name.bytes();
  if (of.is(Value::Kind::other) || find_method(of, spelled) != nullptr) {
    Value found = member(of, spelled);
    const bool unsafe = find_method(of, spelled) != nullptr;
    return found.is_undefined() && !unsafe ? unknown_member(of, name) : found;
  }
  if (of.is(Value::Kind::dict)) {
    if (const Value* const found = of.dict().find(spelled)) return *found;
  }
  return unknown_member(of, name);
}

Value Interpreter::item(const Value& of, const Value& key) {
  of.require_defined();
  const auto at = [&](int64_t size) -> std::optional<int64_t> {
    const int64_t index = key.integer() < 0 ? key.integer() + size : key.integer();
    return index >= 0 && index < size ? std::optional(index) : std::nullopt;
  };
  switch (of.kind()) {
    case Value::Kind::dict: {
      const bool hashable =
          !key.is(Value::Kind::dict) && !(key.is(Value::Kind::list) && key.list().kind == List::Kind::list);
      if (hashable) {
        spend(extent_of(key).weight);
        if (const Value* const found = of.dict().find(key)) return *found;
      }
      break;
    }
    case Value::Kind::list:
      if (!key.is_integral() || !of.list().indexable()) break;
      if (const auto index = at(std::ssize(of.list().items))) return of.list().items[static_cast<size_t>(*index)];
      break;
    case Value::Kind::range:
      if (!key.is_integral()) break;
      if (const auto index = at(of.range().size)) return Value::of(of.range().at(*index));
      break;
    case Value::Kind::string: {
      if (!key.is_integral()) break;
      const Text& text = of.text();
      const auto index = at(text.characters());
      if (!index) break;
      if (!text.ascii()) spend_bytes(text.bytes().size());
      const size_t begin = text.offset(*index);
      size_t end = begin + 1;
      while (end < text.bytes().size() && (static_cast<unsigned char>(text.bytes()[end]) & 0xC0) == 0x80) ++end;
      return string(text.bytes().substr(begin, end - begin), text.markup());
    }
    default: break;
  }
  if (key.is_string()) {
    Value found = member(of, key.bytes());
    if (!found.is_undefined()) return found;
  }
  return unknown_member(of, key);
}

}  // namespace elapid::jinja
