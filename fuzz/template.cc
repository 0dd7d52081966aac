// A chat template: rendering ends in time, in valid UTF-8, and the same way twice.

#include "elapid/text/template.h"

#include "fuzz/property.h"

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace elapid {
namespace {

ChatInput conversation() {
  ChatInput input;
  input.messages = {
      {{"role", "system"}, {"content", "Be brief."}},
      {{"role", "user"}, {"content", " Gr\u00fc\u00dfe \U0001F600\n'\"<x>"}},
      {{"role", "assistant"},
       {"content", nullptr},
       {"tool_calls", {{{"id", "abcdef123"}, {"function", {{"name", "f"}, {"arguments", {{"a", 1.5}}}}}}}}},
      {{"role", "tool"}, {"content", "7"}, {"tool_call_id", "abcdef123"}}};
  input.tools = {{{"type", "function"}, {"function", {{"name", "f"}, {"parameters", {{"properties", {{"a", {}}}}}}}}}};
  input.add_generation_prompt = true;
  input.variables = {{"bos_token", "<s>"}, {"n", -7}, {"x", 2.5}, {"t", true}, {"list", {3, 1, 2}}};
  return input;
}

void run(std::string_view source) {
  static const ChatInput input = conversation();
  const ChatLimits limits{.steps = 50'000, .memory = 32 << 20, .output = 1 << 20, .now = 1'750'000'000};
  const ChatTemplate parsed = ChatTemplate::parse(source, "input");
  ChatText first, second;
  const bool renders = succeeds([&] { first = parsed.render(input, limits); });
  expect(succeeds([&] { second = parsed.render(input, limits); }) == renders, "a template renders always or never");
  expect(first.text == second.text && first.generations == second.generations, "rendering twice gives the same text");
  expect(is_utf8(first.text), "rendered text is valid UTF-8");
  expect(first.text.size() <= size_t{1} << 20, "the output is bounded");
}

}  // namespace
}  // namespace elapid

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  elapid::succeeds([&] { elapid::run({reinterpret_cast<const char*>(data), size}); });
  return 0;
}
