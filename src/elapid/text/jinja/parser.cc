#include "elapid/text/jinja/parser.h"

#include "elapid/core/error.h"
#include "elapid/io/json.h"
#include "elapid/text/jinja/builtins.h"
#include "elapid/text/jinja/lexer.h"

#include <algorithm>
#include <initializer_list>
#include <unordered_map>

namespace elapid::jinja {
namespace {

using Kind = Token::Kind;
using Words = std::initializer_list<std::string_view>;

// What a file can nest; deeper ones would exhaust the stack.
constexpr int kMaxDepth = 150;

Value literal(std::string text) { return Value::of(std::make_shared<const Text>(std::move(text))); }

class Parser {
 public:
  explicit Parser(std::string_view text) : tokens_(tokenize(text)) {}

  Template run() {
    template_.loop = id_of("loop");
    template_.body = statements({});
    return std::move(template_);
  }

 private:
  // --- Tokens

  [[nodiscard]] const Token& now() const { return tokens_[at_]; }
  [[nodiscard]] const Token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  const Token& next() {
    const Token& token = tokens_[at_];
    if (token.kind != Kind::end) ++at_;
    return token;
  }
  bool skip_symbol(std::string_view symbol) {
    if (!now().is_symbol(symbol)) return false;
    next();
    return true;
  }
  bool skip_name(std::string_view name) {
    if (!now().is_name(name)) return false;
    next();
    return true;
  }

  [[noreturn]] static void refuse(int line, const std::string& message) { throw SyntaxError{line, message}; }
  [[noreturn]] void refuse(const std::string& message) const { refuse(now().line, message); }

  static std::string describe(const Token& token) {
    switch (token.kind) {
      case Kind::text: return "template text";
      case Kind::block_begin: return "begin of statement block";
      case Kind::block_end: return "end of statement block";
      case Kind::print_begin: return "begin of print statement";
      case Kind::print_end: return "end of print statement";
      case Kind::integer: return "an integer";
      case Kind::real: return "a float";
      case Kind::end: return "end of template";
      default: return quote(token.text);
    }
  }

  void expect_symbol(std::string_view symbol) {
    if (!skip_symbol(symbol)) refuse(concat("expected '", symbol, "', got ", describe(now())));
  }
  void expect_name(std::string_view name) {
    if (!skip_name(name)) refuse(concat("expected '", name, "', got ", describe(now())));
  }
  std::string expect_any_name() {
    if (now().kind != Kind::name) refuse(concat("expected a name, got ", describe(now())));
    return next().text;
  }
  void expect(Kind kind, std::string_view what) {
    if (now().kind != kind) refuse(concat("expected ", what, ", got ", describe(now())));
    next();
  }

  NameId id_of(const std::string& name) {
    const auto [found, is_new] = ids_.try_emplace(name, static_cast<NameId>(template_.names.size()));
    if (is_new) template_.names.push_back(name);
    return found->second;
  }

  // Counts what is open around the code that runs while it lives.
  class Nesting {
   public:
    explicit Nesting(Parser& parser) : parser_(parser) {
      if (++parser_.depth_ > kMaxDepth) parser_.refuse(concat("must nest at most ", kMaxDepth, " deep"));
    }
    ~Nesting() { --parser_.depth_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    Parser& parser_;
  };

  // --- Statements

  // Up to a block that begins with one of `ends`, whose begin is taken and whose name is not; to the end of the
  // template when there are none.
  Body statements(Words ends) {
    const Nesting nesting(*this);
    Body body;
    for (;;) {
      switch (now().kind) {
        case Kind::end:
          if (ends.size() > 0) refuse(concat("unexpected end of template, expected '", *ends.begin(), "'"));
          return body;
        case Kind::text: {
          Statement& text = body.emplace_back(Statement{Statement::Kind::text, now().line});
          text.text = next().text;
          break;
        }
        case Kind::print_begin: {
          next();
          Statement print{Statement::Kind::print, now().line};
          print.values.push_back(tuple(true));
          expect(Kind::print_end, "end of print statement");
          body.push_back(std::move(print));
          break;
        }
        case Kind::block_begin:
          next();
          if (now().kind == Kind::name && std::find(ends.begin(), ends.end(), now().text) != ends.end()) return body;
          statement(body);
          expect(Kind::block_end, "end of statement block");
          break;
        default: refuse(concat("unexpected ", describe(now())));
      }
    }
  }

  // The rest of a tag, what it holds, and the begin of the tag that ends it.
  Body block(Words ends) {
    skip_symbol(":");
    expect(Kind::block_end, "end of statement block");
    return statements(ends);
  }
  // And the name that ends it.
  Body whole_block(std::string_view end) {
    Body body = block({end});
    next();
    return body;
  }

  void statement(Body& body) {
    if (now().kind != Kind::name) refuse("tag name expected");
    const Token tag = next();
    Statement made{Statement::Kind::text, tag.line};
    if (tag.text == "set") {
      set(made);
    } else if (tag.text == "if") {
      branch(made);
    } else if (tag.text == "for") {
      loop(made);
    } else if (tag.text == "macro") {
      macro(made);
    } else if (tag.text == "call") {
      call_block(made);
    } else if (tag.text == "filter") {
      made.kind = Statement::Kind::filter;
      made.value = filters(nullptr, true);
      made.body = whole_block("endfilter");
    } else if (tag.text == "with") {
      with(made);
    } else if (tag.text == "print") {
      made.kind = Statement::Kind::print;
      while (now().kind != Kind::block_end) {
        if (!made.values.empty()) expect_symbol(",");
        made.values.push_back(expression());
      }
    } else if (tag.text == "generation") {
      made.kind = Statement::Kind::generation;
      made.body = whole_block("endgeneration");
    } else if (tag.text == "break" || tag.text == "continue") {
      made.kind = tag.text == "break" ? Statement::Kind::break_loop : Statement::Kind::continue_loop;
      if (loops_ == 0) refuse(tag.line, concat("'", tag.text, "' outside loop"));
    } else {
      refuse(tag.line, concat("unknown or unsupported tag ", quote(tag.text)));
    }
    body.push_back(std::move(made));
  }

  void set(Statement& made) {
    made.target = target({}, true);
    if (skip_symbol("=")) {
      made.kind = Statement::Kind::set;
      made.value = tuple(true);
      return;
    }
    made.kind = Statement::Kind::set_block;
    made.value = filters(nullptr, false);
    made.body = whole_block("endset");
  }

  void branch(Statement& made) {
    made.kind = Statement::Kind::branch;
    made.value = tuple(false);
    made.body = block({"elif", "else", "endif"});
    // Not by recursion: a chain of elif is as long as it likes.
    Statement* last = &made;
    int elifs = 0;
    while (now().is_name("elif")) {
      Statement nested{Statement::Kind::branch, next().line};
      if (++elifs > kMaxElifs) refuse(concat("must have at most ", kMaxElifs, " elif in a row"));
      nested.value = tuple(false);
      nested.body = block({"elif", "else", "endif"});
      last->otherwise.push_back(std::move(nested));
      last = &last->otherwise.back();
    }
    if (next().text == "else") last->otherwise = whole_block("endif");
  }

  void loop(Statement& made) {
    made.kind = Statement::Kind::loop;
    made.target = target({"in"}, false);
    if (assigns(made.target, template_.loop))
      refuse(made.line, "can't assign to special loop variable in for-loop target");
    expect_name("in");
    made.value = tuple(false, {"recursive"});
    if (skip_name("if")) made.test = expression();
    if (now().is_name("recursive")) refuse("recursive loops are not supported");
    ++loops_;
    made.body = block({"endfor", "else"});
    --loops_;
    if (next().text == "else") made.otherwise = whole_block("endfor");
  }

  static bool assigns(const Target& target, NameId name) {
    if (!target.is_tuple) return target.name == name;
    return std::any_of(target.parts.begin(), target.parts.end(),
                       [&](const Target& part) { return assigns(part, name); });
  }

  void with(Statement& made) {
    made.kind = Statement::Kind::with;
    while (now().kind != Kind::block_end) {
      if (!made.targets.empty()) expect_symbol(",");
      made.targets.push_back(target({}, false));
      expect_symbol("=");
      made.values.push_back(expression());
    }
    made.body = whole_block("endwith");
  }

  void parameters(Routine& routine) {
    expect_symbol("(");
    while (!now().is_symbol(")")) {
      if (!routine.parameters.empty()) expect_symbol(",");
      Parameter parameter;
      parameter.spelling = expect_any_name();
      parameter.name = id_of(parameter.spelling);
      if (skip_symbol("=")) {
        parameter.otherwise = expression();
      } else if (!routine.parameters.empty() && routine.parameters.back().otherwise) {
        refuse("non-default argument follows default argument");
      }
      routine.parameters.push_back(std::move(parameter));
    }
    expect_symbol(")");
  }

  // The body, in which caller, kwargs and varargs mean something when they are used.
  void routine_body(Statement& made, std::string_view end) {
    Routine& routine = made.routine;
    routine.caller = id_of("caller");
    routine.keywords = id_of("kwargs");
    routine.positional = id_of("varargs");
    const size_t outer = used_.size();
    const int loops = std::exchange(loops_, 0);
    made.body = whole_block(end);
    loops_ = loops;
    const auto uses = [&](NameId name) {
      const bool used = std::find(used_.begin() + static_cast<std::ptrdiff_t>(outer), used_.end(), name) != used_.end();
      return used && std::none_of(routine.parameters.begin(), routine.parameters.end(),
                                  [&](const Parameter& parameter) { return parameter.name == name; });
    };
    routine.takes_caller = uses(routine.caller);
    routine.takes_keywords = uses(routine.keywords);
    routine.takes_positional = uses(routine.positional);
  }

  void macro(Statement& made) {
    made.kind = Statement::Kind::macro;
    made.routine.name = expect_any_name();
    made.name = id_of(made.routine.name);
    parameters(made.routine);
    routine_body(made, "endmacro");
  }

  void call_block(Statement& made) {
    made.kind = Statement::Kind::call;
    if (now().is_symbol("(")) parameters(made.routine);
    made.value = expression();
    if (made.value->op != Op::call) refuse(made.line, "expected call");
    routine_body(made, "endcall");
  }

  // --- Targets

  Target target(Words ends, bool namespaces) {
    Target first;
    first.line = now().line;
    std::vector<Target> parts;
    bool is_tuple = false;
    for (;;) {
      if (!parts.empty()) expect_symbol(",");
      if (ends_tuple(ends)) break;
      parts.push_back(single_target(namespaces));
      if (!now().is_symbol(",")) break;
      is_tuple = true;
    }
    if (!is_tuple) {
      if (parts.empty()) refuse(concat("expected a name to assign to, got ", describe(now())));
      return std::move(parts.front());
    }
    first.is_tuple = true;
    first.parts = std::move(parts);
    return first;
  }

  Target single_target(bool namespaces) {
    const Nesting nesting(*this);
    Target made;
    made.line = now().line;
    if (skip_symbol("(")) {
      made.is_tuple = true;
      while (!now().is_symbol(")")) {
        if (!made.parts.empty()) expect_symbol(",");
        if (now().is_symbol(")")) break;
        made.parts.push_back(single_target(false));
      }
      const bool one = made.parts.size() == 1 && !tokens_[at_ - 1].is_symbol(",");
      expect_symbol(")");
      return one ? Target(std::move(made.parts.front())) : made;
    }
    const std::string name = expect_any_name();
    if (is_literal(name)) refuse(made.line, concat("can't assign to ", quote(name)));
    made.name = id_of(name);
    if (namespaces && skip_symbol(".")) {
      made.attribute = expect_any_name();
      used_.push_back(made.name);
    }
    return made;
  }

  static bool is_literal(std::string_view name) {
    return name == "true" || name == "True" || name == "false" || name == "False" || name == "none" || name == "None";
  }

  // --- Expressions

  ExpressionPtr make(Op op, int line) {
    auto made = std::make_unique<Expression>();
    made->op = op;
    made->line = line;
    return made;
  }

  void adopt(Expression& parent, ExpressionPtr part) {
    deepen(parent, part.get());
    parent.parts.push_back(std::move(part));
  }

  // A long chain of operators nests as deep as brackets do.
  void deepen(Expression& parent, const Expression* part) {
    if (part == nullptr) return;
    parent.depth = std::max(parent.depth, part->depth + 1);
    if (parent.depth > kMaxChain) refuse(parent.line, concat("an expression must nest at most ", kMaxChain, " deep"));
  }

  ExpressionPtr binary(Op op, int line, ExpressionPtr left, ExpressionPtr right) {
    ExpressionPtr made = make(op, line);
    adopt(*made, std::move(left));
    adopt(*made, std::move(right));
    return made;
  }

  [[nodiscard]] bool ends_tuple(Words ends) const {
    if (now().kind == Kind::print_end || now().kind == Kind::block_end || now().is_symbol(")")) return true;
    return now().kind == Kind::name && std::find(ends.begin(), ends.end(), now().text) != ends.end();
  }

  ExpressionPtr tuple(bool conditionals, Words ends = {}, bool in_brackets = false) {
    const int line = now().line;
    std::vector<ExpressionPtr> items;
    bool is_tuple = false;
    for (;;) {
      if (!items.empty()) expect_symbol(",");
      if (ends_tuple(ends)) break;
      items.push_back(conditionals ? expression() : logical_or());
      if (!now().is_symbol(",")) break;
      is_tuple = true;
    }
    if (!is_tuple && !items.empty()) return std::move(items.front());
    if (!is_tuple && !in_brackets) refuse(concat("expected an expression, got ", describe(now())));
    ExpressionPtr made = make(Op::tuple, line);
    for (ExpressionPtr& item : items) adopt(*made, std::move(item));
    return made;
  }

  ExpressionPtr expression() {
    const Nesting nesting(*this);
    const int line = now().line;
    ExpressionPtr first = logical_or();
    while (skip_name("if")) {
      ExpressionPtr made = make(Op::conditional, line);
      adopt(*made, logical_or());
      adopt(*made, std::move(first));
      made->parts.push_back(nullptr);
      if (skip_name("else")) {
        made->parts.back() = expression();
        deepen(*made, made->parts.back().get());
      }
      first = std::move(made);
    }
    return first;
  }

  ExpressionPtr logical_or() {
    const int line = now().line;
    ExpressionPtr left = logical_and();
    while (skip_name("or")) left = binary(Op::logical_or, line, std::move(left), logical_and());
    return left;
  }

  ExpressionPtr logical_and() {
    const int line = now().line;
    ExpressionPtr left = logical_not();
    while (skip_name("and")) left = binary(Op::logical_and, line, std::move(left), logical_not());
    return left;
  }

  ExpressionPtr logical_not() {
    if (!now().is_name("not")) return comparison();
    const Nesting nesting(*this);
    ExpressionPtr made = make(Op::logical_not, next().line);
    adopt(*made, logical_not());
    return made;
  }

  bool comparison_symbol(Comparison& found) {
    constexpr std::pair<std::string_view, Comparison> kSymbols[] = {{"==", Comparison::eq}, {"!=", Comparison::ne},
                                                                    {"<", Comparison::lt},  {"<=", Comparison::le},
                                                                    {">", Comparison::gt},  {">=", Comparison::ge}};
    for (const auto& [symbol, comparison] : kSymbols) {
      if (!skip_symbol(symbol)) continue;
      found = comparison;
      return true;
    }
    if (skip_name("in")) {
      found = Comparison::in;
      return true;
    }
    if (!now().is_name("not") || !ahead().is_name("in")) return false;
    next();
    next();
    found = Comparison::not_in;
    return true;
  }

  ExpressionPtr comparison() {
    const int line = now().line;
    ExpressionPtr first = sum();
    Comparison found{};
    if (!comparison_symbol(found)) return first;
    ExpressionPtr made = make(Op::compare, line);
    adopt(*made, std::move(first));
    do {
      made->comparisons.push_back(found);
      adopt(*made, sum());
    } while (comparison_symbol(found));
    return made;
  }

  ExpressionPtr sum() {
    const int line = now().line;
    ExpressionPtr left = joined();
    for (;;) {
      if (skip_symbol("+")) {
        left = binary(Op::add, line, std::move(left), joined());
      } else if (skip_symbol("-")) {
        left = binary(Op::subtract, line, std::move(left), joined());
      } else {
        return left;
      }
    }
  }

  ExpressionPtr joined() {
    const int line = now().line;
    ExpressionPtr first = product();
    if (!now().is_symbol("~")) return first;
    ExpressionPtr made = make(Op::concat, line);
    adopt(*made, std::move(first));
    while (skip_symbol("~")) adopt(*made, product());
    return made;
  }

  ExpressionPtr product() {
    const int line = now().line;
    ExpressionPtr left = power();
    for (;;) {
      if (skip_symbol("*")) {
        left = binary(Op::multiply, line, std::move(left), power());
      } else if (skip_symbol("/")) {
        left = binary(Op::divide, line, std::move(left), power());
      } else if (skip_symbol("//")) {
        left = binary(Op::floor_divide, line, std::move(left), power());
      } else if (skip_symbol("%")) {
        left = binary(Op::modulo, line, std::move(left), power());
      } else {
        return left;
      }
    }
  }

  ExpressionPtr power() {
    const int line = now().line;
    ExpressionPtr left = unary(true);
    while (skip_symbol("**")) left = binary(Op::power, line, std::move(left), unary(true));
    return left;
  }

  ExpressionPtr unary(bool with_filters) {
    const Nesting nesting(*this);
    const int line = now().line;
    ExpressionPtr made;
    if (now().is_symbol("-") || now().is_symbol("+")) {
      made = make(next().text == "-" ? Op::negate : Op::plus, line);
      adopt(*made, unary(false));
    } else {
      made = primary();
    }
    made = postfix(std::move(made));
    return with_filters ? filters_and_tests(std::move(made)) : std::move(made);
  }

  ExpressionPtr constant(Value value, int line) {
    ExpressionPtr made = make(Op::constant, line);
    made->constant = std::move(value);
    return made;
  }

  ExpressionPtr primary() {
    const Token& token = now();
    const int line = token.line;
    switch (token.kind) {
      case Kind::name: {
        const std::string name = next().text;
        if (is_literal(name)) {
          const char first = name.front();
          return constant(first == 'n' || first == 'N' ? Value::none() : Value::of(first == 't' || first == 'T'), line);
        }
        ExpressionPtr made = make(Op::name, line);
        made->name = id_of(name);
        used_.push_back(made->name);
        return made;
      }
      case Kind::string: {
        std::string text = next().text;
        while (now().kind == Kind::string) text += next().text;
        return constant(literal(std::move(text)), line);
      }
      case Kind::integer: return constant(Value::of(next().integer), line);
      case Kind::real: return constant(Value::of(next().real), line);
      default: break;
    }
    if (skip_symbol("(")) {
      ExpressionPtr made = tuple(true, {}, true);
      expect_symbol(")");
      return made;
    }
    if (now().is_symbol("[")) return list();
    if (now().is_symbol("{")) return dict();
    refuse(concat("unexpected ", describe(now())));
  }

  ExpressionPtr list() {
    ExpressionPtr made = make(Op::list, next().line);
    while (!now().is_symbol("]")) {
      if (!made->parts.empty()) expect_symbol(",");
      if (now().is_symbol("]")) break;
      adopt(*made, expression());
    }
    expect_symbol("]");
    return made;
  }

  ExpressionPtr dict() {
    ExpressionPtr made = make(Op::dict, next().line);
    while (!now().is_symbol("}")) {
      if (!made->parts.empty()) expect_symbol(",");
      if (now().is_symbol("}")) break;
      adopt(*made, expression());
      expect_symbol(":");
      adopt(*made, expression());
    }
    expect_symbol("}");
    return made;
  }

  ExpressionPtr postfix(ExpressionPtr made) {
    for (;;) {
      if (now().is_symbol(".") || now().is_symbol("[")) {
        made = subscript(std::move(made));
      } else if (now().is_symbol("(")) {
        made = call(std::move(made));
      } else {
        return made;
      }
    }
  }

  ExpressionPtr filters_and_tests(ExpressionPtr made) {
    for (;;) {
      if (now().is_symbol("|")) {
        made = filters(std::move(made), false);
      } else if (now().is_name("is")) {
        made = test(std::move(made));
      } else if (now().is_symbol("(")) {
        made = call(std::move(made));
      } else {
        return made;
      }
    }
  }

  ExpressionPtr subscript(ExpressionPtr of) {
    const int line = now().line;
    if (skip_symbol(".")) {
      if (now().kind == Kind::integer)
        return binary(Op::item, line, std::move(of), constant(Value::of(next().integer), line));
      if (now().kind != Kind::name) refuse("expected name or number");
      ExpressionPtr made = make(Op::attribute, line);
      made->text = next().text;
      made->constant = literal(made->text);
      adopt(*made, std::move(of));
      return made;
    }
    expect_symbol("[");
    std::vector<ExpressionPtr> items;
    while (!now().is_symbol("]")) {
      if (!items.empty()) expect_symbol(",");
      items.push_back(subscribed());
    }
    expect_symbol("]");
    if (items.size() == 1 && items.front()->op == Op::slice) {
      ExpressionPtr made = std::move(items.front());
      made->parts.insert(made->parts.begin(), nullptr);
      deepen(*made, of.get());
      made->parts.front() = std::move(of);
      return made;
    }
    if (items.size() == 1) return binary(Op::item, line, std::move(of), std::move(items.front()));
    ExpressionPtr several = make(Op::tuple, line);
    for (ExpressionPtr& item : items) {
      if (item->op == Op::slice && item->parts.size() == 3)
        refuse(line, "slices in several dimensions are not supported");
      adopt(*several, std::move(item));
    }
    return binary(Op::item, line, std::move(of), std::move(several));
  }

  // An index, or the three bounds of a slice (what it is of comes later).
  ExpressionPtr subscribed() {
    const int line = now().line;
    ExpressionPtr first;
    if (!now().is_symbol(":")) {
      first = expression();
      if (!now().is_symbol(":")) return first;
    }
    expect_symbol(":");
    ExpressionPtr made = make(Op::slice, line);
    made->parts.resize(3);
    made->parts[0] = std::move(first);
    const auto absent = [&] { return now().is_symbol(":") || now().is_symbol("]") || now().is_symbol(","); };
    if (!absent()) made->parts[1] = expression();
    if (skip_symbol(":") && !absent()) made->parts[2] = expression();
    for (const ExpressionPtr& part : made->parts) deepen(*made, part.get());
    return made;
  }

  void arguments(Expression& made) {
    CallArguments& into = made.arguments;
    const int line = now().line;
    expect_symbol("(");
    bool any = false;
    while (!now().is_symbol(")")) {
      if (any) {
        expect_symbol(",");
        if (now().is_symbol(")")) break;
      }
      any = true;
      const auto ensure = [&](bool valid) {
        if (!valid) refuse(line, "invalid syntax for function call expression");
      };
      if (skip_symbol("*")) {
        ensure(!into.all_positional && !into.all_keywords);
        into.all_positional = expression();
        deepen(made, into.all_positional.get());
      } else if (skip_symbol("**")) {
        ensure(!into.all_keywords);
        into.all_keywords = expression();
        deepen(made, into.all_keywords.get());
      } else if (now().kind == Kind::name && ahead().is_symbol("=")) {
        ensure(!into.all_keywords);
        std::string key = next().text;
        next();
        for (const auto& [known, value] : into.keywords) {
          if (known == key) refuse(line, concat("keyword argument repeated: ", quote(key)));
        }
        into.keywords.emplace_back(std::move(key), expression());
        deepen(made, into.keywords.back().second.get());
      } else {
        ensure(!into.all_positional && !into.all_keywords && into.keywords.empty());
        into.positional.push_back(expression());
        deepen(made, into.positional.back().get());
      }
    }
    expect_symbol(")");
  }

  ExpressionPtr call(ExpressionPtr of) {
    ExpressionPtr made = make(Op::call, now().line);
    adopt(*made, std::move(of));
    arguments(*made);
    return made;
  }

  // "|a|b(c)"; `inline_first`: the first without its bar. Null without any.
  ExpressionPtr filters(ExpressionPtr of, bool inline_first) {
    while (inline_first || now().is_symbol("|")) {
      if (!inline_first) next();
      inline_first = false;
      ExpressionPtr made = make(Op::filter, now().line);
      made->text = dotted_name();
      made->filter = find_filter(made->text);
      deepen(*made, of.get());
      made->parts.push_back(std::move(of));
      if (now().is_symbol("(")) arguments(*made);
      of = std::move(made);
    }
    return of;
  }

  std::string dotted_name() {
    std::string name = expect_any_name();
    while (skip_symbol(".")) {
      name += '.';
      name += expect_any_name();
    }
    return name;
  }

  ExpressionPtr test(ExpressionPtr of) {
    ExpressionPtr made = make(Op::test, next().line);
    const bool negated = skip_name("not");
    made->text = dotted_name();
    made->test = find_test(made->text);
    adopt(*made, std::move(of));
    if (now().is_symbol("(")) {
      arguments(*made);
    } else if (begins_argument()) {
      if (now().is_name("is")) refuse("you cannot chain multiple tests with is");
      made->arguments.positional.push_back(postfix(primary()));
      deepen(*made, made->arguments.positional.back().get());
    }
    if (!negated) return made;
    ExpressionPtr outer = make(Op::logical_not, made->line);
    adopt(*outer, std::move(made));
    return outer;
  }

  [[nodiscard]] bool begins_argument() const {
    switch (now().kind) {
      case Kind::name: return !now().is_name("else") && !now().is_name("or") && !now().is_name("and");
      case Kind::string:
      case Kind::integer:
      case Kind::real: return true;
      default: return now().is_symbol("[") || now().is_symbol("{");
    }
  }

  static constexpr int kMaxChain = 400;  // operators in a row
  static constexpr int kMaxElifs = 200;

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0, loops_ = 0;
  Template template_;
  std::unordered_map<std::string, NameId> ids_;
  std::vector<NameId> used_;  // names that are read, in order
};

}  // namespace

Template parse(std::string_view text) { return Parser(text).run(); }

}  // namespace elapid::jinja
