#include "elapid/text/template.h"

#include "elapid/core/error.h"
#include "elapid/io/file.h"
#include "elapid/text/jinja/interpreter.h"
#include "elapid/text/jinja/lexer.h"
#include "elapid/text/jinja/parser.h"
#include "elapid/text/json_fields.h"
#include "elapid/text/unicode.h"

#include <algorithm>
#include <array>
#include <limits>

namespace elapid {
namespace {

using jinja::Failure;
using jinja::Value;

constexpr int64_t kMaxFile = int64_t{1} << 24;
constexpr size_t kMaxTemplate = size_t{1} << 22;

// Messages quote templates and conversations: one line, of bounded length, in valid UTF-8.
std::string one_line(std::string_view text) {
  constexpr size_t kMost = 400;
  std::string line;
  for (size_t at = 0; at < text.size();) {
    const auto length = static_cast<size_t>(unicode::utf8_step(text.substr(at)).length);
    if (at + length > kMost) return line + "…";
    const auto byte = static_cast<unsigned char>(text[at]);
    if (byte < 0x20 || byte == 0x7F) {
      line += ' ';
    } else {
      line += text.substr(at, length);
    }
    at += length;
  }
  return line;
}

Value value_of(const OrderedJson& json, jinja::Heap& heap, int depth = 0) {
  if (depth > jinja::Extent::kMaxDepth)
    throw Failure{concat("values nest more than ", jinja::Extent::kMaxDepth, " deep")};
  switch (json.type()) {
    case OrderedJson::value_t::null: return Value::none();
    case OrderedJson::value_t::boolean: return Value::of(json.get<bool>());
    case OrderedJson::value_t::number_integer: return Value::of(json.get<int64_t>());
    case OrderedJson::value_t::number_unsigned: {
      const auto value = json.get<uint64_t>();
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        throw Failure{concat("integers must fit 64 bits, got ", value)};
      }
      return Value::of(static_cast<int64_t>(value));
    }
    case OrderedJson::value_t::number_float: return Value::of(json.get<double>());
    case OrderedJson::value_t::string: {
      const auto& text = json.get_ref<const std::string&>();
      const size_t valid = unicode::valid_utf8_prefix(text);
      if (valid != text.size())
        throw Failure{concat("text must be valid UTF-8, got an invalid byte at offset ", valid)};
      return heap.string(text);
    }
    case OrderedJson::value_t::array: {
      std::vector<Value> items;
      for (const OrderedJson& item : json) items.push_back(value_of(item, heap, depth + 1));
      return heap.list(std::move(items));
    }
    case OrderedJson::value_t::object: {
      auto* const dict = heap.make<jinja::Dict>();
      for (const auto& [key, item] : json.items()) heap.set(*dict, heap.string(key), value_of(item, heap, depth + 1));
      return Value::of(dict);
    }
    default: throw Failure{"values must be JSON"};
  }
}

struct Found {
  std::string text, what;
};

constexpr std::array<const char*, 7> kSpecialTokens = {"bos_token", "eos_token", "unk_token", "sep_token",
                                                       "pad_token", "cls_token", "mask_token"};

Json read_config(const std::filesystem::path& path) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return {};
  Json json = parse_json(read_text_file(path, kMaxFile), path.string());
  require(json.is_object(), path.string(), ": must be an object, got ", describe(json));
  return json;
}

// "chat_template": a text, or [{"name": …, "template": …}, …].
std::optional<Found> template_in(const Json& config, const std::string& what, bool tools) {
  if (!has_field(config, "chat_template")) return {};
  const Json& value = config.at("chat_template");
  const std::string where = what + " chat_template";
  if (value.is_string()) return Found{value.get<std::string>(), where};
  require(value.is_array(), where, ": must be a string or an array, got ", describe(value));
  std::optional<Found> chosen;
  for (const Json& item : value) {
    const std::string name = string_field(item, "name", where);
    const bool better = (tools && name == "tool_use") || (!chosen && name == "default");
    if (better) chosen = Found{string_field(item, "template", where), where + " " + quote(name)};
  }
  require(chosen.has_value(), where, ": must have one named \"default\", got ", value.size(), " others");
  return chosen;
}

std::optional<Found> find_template(const std::filesystem::path& folder, const Json& config, bool tools) {
  std::error_code ignored;
  const auto plain = [&](const std::filesystem::path& path) -> std::optional<Found> {
    if (!std::filesystem::exists(path, ignored)) return {};
    return Found{read_text_file(path, kMaxFile), path.string()};
  };
  if (tools) {
    if (auto found = plain(folder / "additional_chat_templates" / "tool_use.jinja")) return found;
  }
  if (auto found = plain(folder / "chat_template.jinja")) return found;
  if (auto found = template_in(config, (folder / "tokenizer_config.json").string(), tools)) return found;
  const std::filesystem::path processor = folder / "chat_template.json";
  return template_in(read_config(processor), processor.string(), tools);
}

}  // namespace

struct ChatTemplate::Impl {
  std::string what;
  jinja::Template parsed;
  OrderedJson variables = OrderedJson::object();
};

ChatTemplate::ChatTemplate(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

ChatTemplate ChatTemplate::parse(std::string_view text, const std::string& what) {
  require(text.size() <= kMaxTemplate, what, ": must be at most ", kMaxTemplate, " bytes, got ", text.size());
  const size_t valid = unicode::valid_utf8_prefix(text);
  require(valid == text.size(), what, ": must be valid UTF-8, got an invalid byte at offset ", valid);
  try {
    return ChatTemplate(std::make_unique<Impl>(Impl{what, jinja::parse(text)}));
  } catch (const jinja::SyntaxError& error) {
    fail(concat(what, " line ", error.line, ": ", one_line(error.message)));
  }
}

ChatTemplate ChatTemplate::load(const std::filesystem::path& folder, bool tools) {
  const std::filesystem::path path = folder / "tokenizer_config.json";
  const Json config = read_config(path);
  const std::optional<Found> found = find_template(folder, config, tools);
  require(found.has_value(), folder.string(),
          ": must have a chat template (chat_template.jinja, or chat_template in tokenizer_config.json), got none");
  ChatTemplate made = parse(found->text, found->what);
  for (const char* const name : kSpecialTokens) {
    if (!has_field(config, name)) continue;
    const Json& token = config.at(name);
    made.set_variable(name, token.is_object() ? string_field(token, "content", path.string() + " " + name)
                                              : string_field(config, name, path.string()));
  }
  return made;
}

bool ChatTemplate::exists(const std::filesystem::path& folder) {
  return find_template(folder, read_config(folder / "tokenizer_config.json"), false).has_value();
}

ChatText ChatTemplate::render(const ChatInput& input, const ChatLimits& limits) const {
  jinja::Interpreter interpreter(impl_->parsed, {limits.steps, limits.memory, limits.output},
                                 limits.now.value_or(std::time(nullptr)));
  std::string where = impl_->what;
  try {
    const auto define = [&](const std::string& name, const OrderedJson& value) {
      interpreter.define(name, value_of(value, interpreter.heap()));
    };
    const auto define_all = [&](const OrderedJson& variables) {
      for (const auto& [name, value] : variables.items()) define(name, value);
    };
    define_all(impl_->variables);
    define("messages", input.messages);
    define("tools", input.tools);
    define("documents", input.documents);
    define("add_generation_prompt", input.add_generation_prompt);
    require(input.variables.is_null() || input.variables.is_object(), where, ": variables must be an object, got ",
            input.variables.type_name());
    if (input.variables.is_object()) define_all(input.variables);
    where += " line ";
    auto [text, generations] = interpreter.run();
    return {std::move(text), std::move(generations)};
  } catch (const Failure& failure) {
    const std::string line = where == impl_->what ? "" : std::to_string(interpreter.line());
    fail(concat(where, line, ": ", one_line(failure.message)));
  }
}

const OrderedJson& ChatTemplate::variables() const { return impl_->variables; }

void ChatTemplate::set_variable(const std::string& name, OrderedJson value) {
  impl_->variables[name] = std::move(value);
}

}  // namespace elapid
