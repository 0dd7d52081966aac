#pragma once

// What fuzz targets assert. A target fails by crashing, by a sanitizer's report, by any exception that is no
// elapid::Error, or by a broken property.

#include "elapid/core/error.h"

#include <cstdio>
#include <cstdlib>
#include <string_view>

namespace elapid {

// Something that holds whatever the input is.
inline void expect(bool holds, const char* property) {
  if (holds) return;
  std::fprintf(stderr, "broken property: %s\n", property);
  std::abort();
}

// Runs `action`; true when it ended without an Error. Errors must be a line that a person can read.
template <class Action>
bool succeeds(Action action) {
  try {
    action();
    return true;
  } catch (const Error& error) {
    const std::string_view message = error.what();
    expect(!message.empty() && message.size() < 2000, "errors are neither empty nor long");
    expect(message.find('\n') == std::string_view::npos, "errors are one line");
    return false;
  }
}

}  // namespace elapid
