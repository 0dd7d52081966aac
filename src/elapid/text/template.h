#pragma once

// Chat templates: what turns a conversation into the text that a model was trained on. The part of Jinja that they use,
// as transformers runs it: trim_blocks and lstrip_blocks, its tojson, raise_exception(), strftime_now(), break and
// continue, and {% generation %} blocks. Templates come with checkpoints and are not trusted: time, memory and output
// are bounded.

#include "elapid/io/json.h"

#include <cstdint>
#include <ctime>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace elapid {

// What a template sees. Objects keep the order of their keys, which tojson writes.
struct ChatInput {
  OrderedJson messages = OrderedJson::array();  // [{"role": …, "content": …}, …]
  OrderedJson tools{}, documents{};             // null: none, which templates can tell from an empty array
  bool add_generation_prompt = false;           // ends with what an answer begins with
  OrderedJson variables{};                      // more of them by name, or null; over the template's own
};

struct ChatText {
  std::string text;
  std::vector<std::pair<size_t, size_t>> generations;  // what {% generation %} blocks wrote: bytes [begin, end)
};

// Bounds on one rendering. The defaults leave room for a conversation of tens of megabytes.
struct ChatLimits {
  int64_t steps = 20'000'000;           // expressions, statements, items; a text counts by its length
  int64_t memory = int64_t{512} << 20;  // bytes
  int64_t output = int64_t{64} << 20;   // bytes
  std::optional<std::time_t> now{};     // what strftime_now() tells; the time when absent
};

class ChatTemplate {
 public:
  // From a template's text. An Error names the line of what is wrong.
  static ChatTemplate parse(std::string_view text, const std::string& what = "chat template");

  // A checkpoint's, as transformers finds it: chat_template.jinja, else chat_template of tokenizer_config.json, else of
  // chat_template.json. Of several, the one for tools when `tools`, else the default one. The special tokens of
  // tokenizer_config.json (bos_token and so on) are its variables. An Error says when the folder has none.
  static ChatTemplate load(const std::filesystem::path& folder, bool tools = false);
  [[nodiscard]] static bool exists(const std::filesystem::path& folder);

  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;
  ~ChatTemplate();

  // An Error names the line of the template and what went wrong there, also when the template itself refuses the
  // conversation.
  [[nodiscard]] ChatText render(const ChatInput& input, const ChatLimits& limits = {}) const;

  // Variables that every rendering has, such as bos_token.
  [[nodiscard]] const OrderedJson& variables() const;
  void set_variable(const std::string& name, OrderedJson value);

 private:
  struct Impl;
  explicit ChatTemplate(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace elapid
