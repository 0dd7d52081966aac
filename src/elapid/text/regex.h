#pragma once

// Regular expressions as tokenizer files write them: Oniguruma's Ruby syntax, run by PCRE2. What the two engines
// understand differently (\w, \s, \h, ^, (?m), scripts, characters newer than PCRE2) is translated; what cannot be is
// an Error at construction.

#include "elapid/io/json.h"

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace elapid {

class Regex {
 public:
  // `what` names the pattern's place in errors.
  static Regex compile(std::string_view pattern, const std::string& what);
  static Regex literal(std::string_view text, const std::string& what);

  struct Match {
    enum Kind { none, partial, found } kind;
    size_t begin, end;
  };
  // The leftmost match at or after `from` in valid UTF-8. With `more_follows`, a match (or none) is only reported when
  // no continuation of the text could change it; otherwise the kind is `partial` and no match begins before `begin`.
  // Exceeding the engine's limits is an Error. Thread-safe.
  [[nodiscard]] Match find(std::string_view text, size_t from, bool more_follows) const;

  // How many characters before a position can matter to a match that begins there.
  [[nodiscard]] int64_t lookbehind() const { return lookbehind_; }

 private:
  Regex(std::string_view pattern, uint32_t options, std::string what);
  struct Free {
    void operator()(void* code) const;
  };
  std::string what_;
  std::unique_ptr<void, Free> code_;
  int64_t lookbehind_ = 1;
};

// All matches of a pattern in one text that arrives in parts: the text as an alternation of gaps and matches, in order.
// Empty matches right after a match are skipped, as Oniguruma's iterator does.
class RegexScanner {
 public:
  explicit RegexScanner(const Regex& regex) : regex_(&regex) {}

  struct Event {
    size_t begin, end;
    bool match;
    bool complete;  // false: a gap that the text to come may continue
  };

  void start() { *this = RegexScanner(*regex_); }
  // The next event at or after `at`, where the events so far end; false when the rest is not certain yet.
  bool next(std::string_view text, size_t at, bool last, Event& event);
  // The bytes before `at` that later calls want to see, in front of what is not done.
  [[nodiscard]] size_t context(std::string_view text, size_t at) const;

 private:
  const Regex* regex_;
  bool after_match_ = false;  // the events so far end with a match
  bool queued_ = false;       // a match was found behind the gap that was reported last
  size_t queued_end_ = 0;
};

// The "pattern" of a Split or a Replace: {"String": …} or {"Regex": …}.
std::shared_ptr<const Regex> parse_pattern(const Json& json, const std::string& what);

}  // namespace elapid
