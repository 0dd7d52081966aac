#pragma once

// JSON through nlohmann-json, behind one header. Reads what the model world really writes: RFC 8259 plus the bare
// tokens Infinity, -Infinity and NaN (Python's json module) and their object form {"__float__": "Infinity"}. Hostile
// input ends in an Error, never in a crash.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace elapid {

using Json = nlohmann::json;
// Keeps the order of its keys. Looking one up is linear in their number.
using OrderedJson = nlohmann::ordered_json;

// Parses one document. `what` names it in errors (a path, usually). A bare Infinity, -Infinity or NaN becomes the
// object
// {"__float__": "Infinity"}; duplicate keys in one object, trailing text, a byte order mark, invalid UTF-8, numbers
// that overflow a double and nesting deeper than 256 are errors.
Json parse_json(std::string_view text, const std::string& what);
OrderedJson parse_ordered_json(std::string_view text, const std::string& what);

// The number held by `value`, also in {"__float__": …} form; an Error naming `what` otherwise. NaN is an Error, and so
// is an integer that no double holds exactly.
double json_number(const Json& value, const std::string& what);

// An integer ≥ minimum and ≤ maximum; 3.0 counts as 3, 3.5 is an Error naming `what` and the value.
int64_t json_integer(const Json& value, const std::string& what, int64_t minimum, int64_t maximum);

// For error messages: text of unknown origin on one line, in quotes, escaped and shortened; and a value the same way
// (arrays and objects only as such).
std::string quote(std::string_view text);
std::string describe(const Json& value);

}  // namespace elapid
