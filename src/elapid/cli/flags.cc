#include "elapid/cli/flags.h"

#include <CLI/CLI.hpp>
#include <charconv>

namespace elapid::cli {
namespace {

template <class T>
bool parse_number(const std::string& text, T& value) {
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && stop == end;
}

[[noreturn]] void refuse(const std::string& name, const std::string& rule, const std::string& text) {
  throw UsageError(concat(name, ": must be ", rule, ", got ", text.empty() ? "nothing" : text));
}

}  // namespace

int64_t parse_integer(const std::string& name, const std::string& text, IntegerRange range) {
  int64_t value = 0;
  if (parse_number(text, value) && value >= range.min && value <= range.max) return value;
  const bool open = range.max == IntegerRange{}.max;
  refuse(name,
         open ? concat("an integer of at least ", range.min) : concat("an integer from ", range.min, " to ", range.max),
         text);
}

uint64_t parse_unsigned(const std::string& name, const std::string& text) {
  uint64_t value = 0;
  if (parse_number(text, value)) return value;
  refuse(name, concat("an integer from 0 to ", std::numeric_limits<uint64_t>::max()), text);
}

double parse_real(const std::string& name, const std::string& text, RealRange range) {
  double value = 0;
  const bool inside = parse_number(text, value) && value <= range.max &&  // false for NaN
                      (range.min_excluded ? value > range.min : value >= range.min);
  if (inside) return value;
  const std::string from = concat(range.min_excluded ? "a number above " : "a number of at least ", range.min);
  refuse(name, range.max == RealRange{}.max ? from : concat("a number from ", range.min, " to ", range.max), text);
}

struct Flags::Parser {
  Parser(const std::string& command, const std::string& summary) : app(summary, "elapid " + command), name(command) {}
  CLI::App app;
  std::string name;
};

Flags::Flags(const std::string& command, const std::string& summary)
    : parser_(std::make_unique<Parser>(command, summary)) {
  parser_->app.set_help_flag("-h,--help", "Print this and exit");
}
Flags::~Flags() = default;

void Flags::flag(const std::string& name, bool& target, const std::string& help) {
  parser_->app.add_flag_function(
      name, [&target](int64_t) { target = true; }, help);
}

void Flags::option(const std::string& name, const std::string& placeholder, std::function<void(const std::string&)> set,
                   const std::string& help) {
  const auto callback = [set = std::move(set)](const CLI::results_t& values) {
    set(values.back());
    return true;
  };
  CLI::Option* option = parser_->app.add_option(name, callback, help);
  option->type_name(placeholder)->allow_extra_args(false)->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
}

void Flags::repeatable(const std::string& name, const std::string& placeholder, std::vector<std::string>& target,
                       const std::string& help) {
  const auto callback = [&target](const CLI::results_t& values) {
    target = values;
    return true;
  };
  CLI::Option* option = parser_->app.add_option(name, callback, help);
  option->type_name(placeholder)->allow_extra_args(false)->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
}

void Flags::positional(const std::string& placeholder, std::function<void(const std::string&)> set,
                       const std::string& help) {
  option(placeholder, "", std::move(set), help);
}

void Flags::footer(const std::string& text) { parser_->app.footer(text); }

bool Flags::parse(const std::vector<std::string>& arguments) {
  try {
    parser_->app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::CallForHelp&) {
    return false;
  } catch (const CLI::ExtrasError&) {
    std::string first;
    for (const std::string& extra : parser_->app.remaining()) {
      if (first.empty() && extra != "--") first = extra;
    }
    throw UsageError(concat(parser_->name, ": arguments must be among those of --help, got ", first));
  } catch (const CLI::ParseError& error) {
    throw UsageError(concat(parser_->name, ": arguments must be complete, got ", error.what()));
  }
  return true;
}

std::string Flags::help() const { return parser_->app.help(); }

}  // namespace elapid::cli
