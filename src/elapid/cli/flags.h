#pragma once

// Flags of one command: names, ranges and help texts, parsed by CLI11. A value that breaks its rule is a UsageError,
// which ends the program with exit code 2.

#include "elapid/core/error.h"

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

namespace elapid::cli {

// The arguments are wrong, as opposed to a run that failed.
class UsageError : public Error {
 public:
  explicit UsageError(const std::string& message, SourceLocation where = SourceLocation::current())
      : Error(message, where) {}
};

struct IntegerRange {
  int64_t min = 0, max = std::numeric_limits<int64_t>::max();
};
struct RealRange {
  double min = 0, max = std::numeric_limits<double>::max();
  bool min_excluded = false;
};

// `name` with its dashes, for the error.
int64_t parse_integer(const std::string& name, const std::string& text, IntegerRange range);
uint64_t parse_unsigned(const std::string& name, const std::string& text);
double parse_real(const std::string& name, const std::string& text, RealRange range);

class Flags {
 public:
  Flags(const std::string& command, const std::string& summary);
  ~Flags();
  Flags(const Flags&) = delete;
  Flags& operator=(const Flags&) = delete;

  // Targets must live until parse() has returned. An option given twice counts the second time.
  void flag(const std::string& name, bool& target, const std::string& help);
  void option(const std::string& name, const std::string& placeholder, std::function<void(const std::string&)> set,
              const std::string& help);
  void repeatable(const std::string& name, const std::string& placeholder, std::vector<std::string>& target,
                  const std::string& help);
  void positional(const std::string& placeholder, std::function<void(const std::string&)> set, const std::string& help);

  // The targets of these may also be std::optionals.
  template <class Target>
  void text(const std::string& name, const std::string& placeholder, Target& target, const std::string& help) {
    option(
        name, placeholder, [&target](const std::string& value) { target = value; }, help);
  }
  template <class Target>
  void integer(const std::string& name, Target& target, IntegerRange range, const std::string& help) {
    option(
        name, "N", [&target, name, range](const std::string& value) { target = parse_integer(name, value, range); },
        help);
  }
  template <class Target>
  void real(const std::string& name, Target& target, RealRange range, const std::string& help) {
    option(
        name, "X", [&target, name, range](const std::string& value) { target = parse_real(name, value, range); }, help);
  }

  void footer(const std::string& text);

  // Arguments after the command's name. False when they ask for help, which the caller prints.
  [[nodiscard]] bool parse(const std::vector<std::string>& arguments);
  [[nodiscard]] std::string help() const;

 private:
  struct Parser;
  std::unique_ptr<Parser> parser_;
};

}  // namespace elapid::cli
