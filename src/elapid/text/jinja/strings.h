#pragma once

// What Python's str knows about characters.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace elapid::jinja {

[[nodiscard]] bool is_python_space(char32_t code);  // str.isspace()

[[nodiscard]] std::string_view strip_left(std::string_view text);
[[nodiscard]] std::string_view strip_right(std::string_view text);
[[nodiscard]] inline std::string_view strip(std::string_view text) { return strip_left(strip_right(text)); }
// Of any of the characters in a set.
[[nodiscard]] std::string_view strip_left(std::string_view text, std::string_view set);
[[nodiscard]] std::string_view strip_right(std::string_view text, std::string_view set);

[[nodiscard]] std::string upper(std::string_view text);
[[nodiscard]] std::string lower(std::string_view text);
[[nodiscard]] std::string title(std::string_view text);
[[nodiscard]] std::string capitalize(std::string_view text);
[[nodiscard]] std::string swap_case(std::string_view text);

[[nodiscard]] std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends);

// str.isupper() and the like: true for at least one character of the kind and none against it.
[[nodiscard]] bool is_upper(std::string_view text);
[[nodiscard]] bool is_lower(std::string_view text);

}  // namespace elapid::jinja
