#pragma once

// A parsed template: expressions and statements, nested at most kMaxDepth deep.

#include "elapid/text/jinja/value.h"

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace elapid::jinja {

struct Expression;
struct Statement;
using ExpressionPtr = std::unique_ptr<Expression>;
using Body = std::vector<Statement>;

// Of a name in the template: the index in its table.
using NameId = int32_t;

struct CallArguments {
  std::vector<ExpressionPtr> positional;
  std::vector<std::pair<std::string, ExpressionPtr>> keywords;
  ExpressionPtr all_positional, all_keywords;  // *x, **x
};

struct Filter;
struct Test;

enum class Op : uint8_t {
  constant,
  name,
  tuple,
  list,
  dict,       // keys and values in turn
  attribute,  // a.text
  item,       // a[b]
  slice,      // a[b:c:d], absent bounds null
  call,       // a(arguments)
  filter,     // a|filter(arguments); a is null in a filter block
  test,       // a is test(arguments)
  negate,
  plus,
  logical_not,
  logical_and,
  logical_or,
  conditional,  // b if a else c; c may be null
  compare,      // a op b op c …
  concat,
  add,
  subtract,
  multiply,
  divide,
  floor_divide,
  modulo,
  power,
};

enum class Comparison : uint8_t { eq, ne, lt, le, gt, ge, in, not_in };

struct Expression {
  Op op;
  int line = 0;
  int depth = 1;
  NameId name = -1;
  Value constant;
  std::string text;  // an attribute's, a filter's or a test's name
  std::vector<ExpressionPtr> parts;
  std::vector<Comparison> comparisons;
  CallArguments arguments;
  const Filter* filter = nullptr;  // null when there is none of that name: an error once it is used
  const Test* test = nullptr;
};

// What set and for assign to: a name, an attribute of a namespace, or several.
struct Target {
  NameId name = -1;
  std::string attribute;  // of the namespace `name`, unless empty
  bool is_tuple = false;
  std::vector<Target> parts;
  int line = 0;
};

struct Parameter {
  NameId name = -1;
  std::string spelling;
  ExpressionPtr otherwise;
};

// What a macro or a call block is called with, and what it runs.
struct Routine {
  std::string name;
  std::vector<Parameter> parameters;
  bool takes_caller = false, takes_keywords = false, takes_positional = false;
  NameId caller = -1, keywords = -1, positional = -1;
};

struct Statement {
  enum class Kind : uint8_t {
    text,
    print,
    branch,  // if value: body, else: otherwise
    loop,    // for target in value if test: body, else: otherwise
    set,
    set_block,  // value: the filters, on null
    with,       // targets, values
    filter,     // value as in set_block
    macro,
    call,  // value: the call
    generation,
    break_loop,
    continue_loop,
  };

  Kind kind;
  int line = 0;
  std::string text;
  ExpressionPtr value, test;
  std::vector<ExpressionPtr> values;  // of print and with
  Target target;
  std::vector<Target> targets;
  NameId name = -1;
  Routine routine{};
  Body body, otherwise;
};

struct Template {
  Body body;
  std::vector<std::string> names;
  NameId loop = -1;
};

}  // namespace elapid::jinja
