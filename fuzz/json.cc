// JSON documents: what parses is written and parsed again to the same document.

#include "elapid/io/json.h"

#include "fuzz/property.h"

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>

namespace elapid {
namespace {

void visit(const Json& value) {
  if (value.is_structured()) {
    for (const Json& child : value) visit(child);
  }
  constexpr int64_t kMin = std::numeric_limits<int64_t>::min(), kMax = std::numeric_limits<int64_t>::max();
  double number = 0;
  int64_t integer = 0;
  const bool is_number = succeeds([&] { number = json_number(value, "input"); });
  const bool is_integer = succeeds([&] { integer = json_integer(value, "input", kMin, kMax); });
  expect(!is_number || number == number, "json_number() never returns NaN");
  expect(!is_number || !is_integer || number == static_cast<double>(integer), "both readings of a number agree");
  expect(describe(value).find('\n') == std::string::npos, "descriptions are one line");
}

}  // namespace
}  // namespace elapid

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace elapid;  // NOLINT: the entry point must be global
  succeeds([&] {
    const Json json = parse_json({reinterpret_cast<const char*>(data), size}, "input");
    visit(json);
    expect(parse_json(json.dump(), "copy") == json, "a document survives writing and reading");
  });
  return 0;
}
