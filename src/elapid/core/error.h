#pragma once

// Errors of the library: every failure that a caller, a file or the network can cause is an elapid::Error whose message
// is one line naming the operation, the rule and the actual value. The library never prints, exits or aborts; broken
// invariants of our own are assert()s. Not for kernel translation units (see docs/adding-an-op.md).

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace elapid {

// std::source_location, which clang 14 does not have with libstdc++.
struct SourceLocation {
  const char* file;
  int line;
  static constexpr SourceLocation current(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

class Error : public std::runtime_error {
 public:
  Error(const std::string& message, SourceLocation where) : std::runtime_error(message), where_(where) {}

  // The line of the rule that was broken, for debugging; not part of the message.
  [[nodiscard]] const SourceLocation& where() const { return where_; }

 private:
  SourceLocation where_;
};

// Concatenates its arguments with operator<<.
template <class... Parts>
[[nodiscard]] std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return std::move(out).str();
}

// A bool that remembers where it was computed: lets require() capture its caller's line without a macro.
struct Condition {
  template <class T>
  Condition(const T& value, SourceLocation location = SourceLocation::current())  // NOLINT: implicit
      : holds(static_cast<bool>(value)), where(location) {}
  bool holds;
  SourceLocation where;
};

// Throws Error with the concatenated parts unless the condition holds:
//   require(x.cols() == w.cols(), "rms_norm: x must have as many columns as weight (", w.cols(), "), got ", x.cols());
template <class... Parts>
void require(Condition condition, const Parts&... parts) {
  if (!condition.holds) [[unlikely]] {
    throw Error(concat(parts...), condition.where);
  }
}

[[noreturn]] inline void fail(const std::string& message, SourceLocation where = SourceLocation::current()) {
  throw Error(message, where);
}

}  // namespace elapid
