#pragma once

// What fuzz targets assert. A target fails by crashing, by a sanitizer's report, by any exception that is no
// elapid::Error, or by a broken property.

#include "elapid/core/error.h"

#include <cstddef>
#include <cstdint>
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

// Strict: no overlong forms, no surrogates, nothing above U+10FFFF.
inline bool is_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const auto byte = [&](size_t k) { return i + k < text.size() ? static_cast<uint8_t>(text[i + k]) : 0u; };
    const uint32_t first = byte(0);
    const size_t length = first < 0x80 ? 1 : first >= 0xc2 && first < 0xe0 ? 2 : (first & 0xf0) == 0xe0 ? 3 : 4;
    if (length == 4 && (first < 0xf0 || first > 0xf4)) return false;
    for (size_t k = 1; k < length; ++k) {
      if ((byte(k) & 0xc0) != 0x80) return false;
    }
    if ((first == 0xe0 && byte(1) < 0xa0) || (first == 0xed && byte(1) > 0x9f)) return false;
    if ((first == 0xf0 && byte(1) < 0x90) || (first == 0xf4 && byte(1) > 0x8f)) return false;
    i += length;
  }
  return true;
}

}  // namespace elapid
