#include "elapid/text/template.h"

#include "elapid/core/error.h"
#include "elapid/io/file.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>

namespace elapid {
namespace {

const std::filesystem::path kFolder = std::filesystem::path(ELAPID_SOURCE_DIR) / "tests/data/templates";

OrderedJson read(const char* name) {
  const std::string path = (kFolder / name).string();
  return parse_ordered_json(read_text_file(path), path);
}

// Goldens tell the time in UTC.
class Template : public testing::Test {
 protected:
  void SetUp() override { setenv("TZ", "UTC", 1); }
};

// An Error of one line, where Jinja fails, and the same text where it does not.
void expect_golden(const OrderedJson& golden, std::string_view source, const ChatInput& input, std::time_t now) {
  SCOPED_TRACE(golden.dump());
  ChatText made;
  std::string error;
  try {
    made = ChatTemplate::parse(source).render(input, {.now = now});
  } catch (const Error& failure) {
    error = failure.what();
  }
  if (golden.contains("error")) {
    EXPECT_NE(error, "");
    EXPECT_EQ(error.find('\n'), std::string::npos);
    EXPECT_EQ(error.rfind("chat template", 0), 0u) << error;
    return;
  }
  EXPECT_EQ(error, "");
  EXPECT_EQ(made.text, golden.at("text").get<std::string>());
  const OrderedJson spans = golden.value("generations", OrderedJson::array());
  EXPECT_EQ(OrderedJson(made.generations), spans);
}

TEST_F(Template, SnippetsRenderAsInJinja) {
  const OrderedJson golden = read("snippets.json");
  ASSERT_GE(golden.at("cases").size(), 600u);
  ChatInput input;
  input.variables = golden.at("variables");
  for (const OrderedJson& each : golden.at("cases")) {
    expect_golden(each, each.at("template").get_ref<const std::string&>(), input, golden.at("now").get<std::time_t>());
  }
}

TEST_F(Template, ChatsRenderAsInJinja) {
  const OrderedJson golden = read("chats.json");
  ASSERT_GE(golden.at("cases").size(), 200u);
  for (const OrderedJson& each : golden.at("cases")) {
    const OrderedJson& variant = golden.at("variants").at(each.at("variant").get<std::string>());
    ChatInput input;
    input.messages = golden.at("conversations").at(each.at("conversation").get<std::string>());
    input.tools = variant.value("tools", OrderedJson());
    input.documents = variant.value("documents", OrderedJson());
    input.add_generation_prompt = variant.at("add_generation_prompt").get<bool>();
    input.variables = {{"bos_token", "<s>"}, {"eos_token", "</s>"}};
    if (variant.contains("variables")) input.variables.update(variant.at("variables"));
    const std::string source = read_text_file(kFolder / each.at("template").get<std::string>());
    expect_golden(each, source, input, golden.at("now").get<std::time_t>());
  }
}

std::string error_of(std::string_view source, const ChatInput& input = {}, const ChatLimits& limits = {}) {
  try {
    (void)ChatTemplate::parse(source).render(input, limits);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST_F(Template, ErrorsNameTheLine) {
  EXPECT_EQ(error_of("a\n{{ missing.x }}"), "chat template line 2: 'missing' is undefined");
  EXPECT_EQ(error_of("a\n\n{% if %}"), "chat template line 3: expected an expression, got end of statement block");
  EXPECT_EQ(error_of("{{ 1\n}}{{ raise_exception('no\nway') }}"), "chat template line 2: the template refuses: no way");
  EXPECT_EQ(error_of("{% macro m() %}\n{{ 1 / 0 }}{% endmacro %}\n{{ m() }}"),
            "chat template line 2: division by zero");
  EXPECT_EQ(error_of("{{ '" + std::string(5000, 'x') + "'.y.z }}").find('\n'), std::string::npos);
  EXPECT_LT(error_of("{{ raise_exception('" + std::string(5000, 'x') + "') }}").size(), 500u);
}

// Each would take hours, gigabytes or the stack.
TEST_F(Template, HostileTemplatesEnd) {
  const auto nested = [](const std::string& open, const std::string& inner, const std::string& close, int count) {
    std::string text;
    for (int i = 0; i < count; ++i) text += open;
    text += inner;
    for (int i = 0; i < count; ++i) text += close;
    return text;
  };
  const std::string loops = nested("{% for i in range(99999) %}", "", "{% endfor %}", 5);
  const std::string doubling =
      "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}";
  const std::string growing =
      "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
  const std::string deep =
      "{% set ns = namespace(x=1) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}";
  const std::vector<std::string> hostile = {
      loops,
      doubling,
      growing,
      deep,
      deep + "{{ ns.x == ns.x }}",
      "{% set ns = namespace(x=[1]) %}{% for i in range(99999) %}{% set ns.x = ns.x|map('string') %}{% endfor %}"
      "{{ ns.x|list }}",
      "{% set ns = namespace(x=[1]) %}{% for i in range(99999) %}{% set ns.x = [1]|select('in', ns.x) %}{% endfor %}"
      "{{ ns.x|list }}",
      "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
      "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
      "{% macro m(k) %}{{ m(k) }}{{ m(k) }}{% endmacro %}{{ m(1) }}",
      "{{ " + nested("(", "1", ")", 100000) + " }}",
      "{{ " + nested("[", "1", "]", 100000) + " }}",
      "{{ " + nested("not ", "1", "", 100000) + " }}",
      "{{ " + nested("-", "1", "", 100000) + " }}",
      "{{ 1" + nested(" + 1", "", "", 100000) + " }}",
      "{{ 1" + nested("|abs", "", "", 100000) + " }}",
      "{{ a" + nested(".a", "", "", 100000) + " }}",
      "{{ 1" + nested(" if 1 else 1", "", "", 100000) + " }}",
      nested("{% if 1 %}", "", "{% endif %}", 100000),
      "{% if 0 %}" + nested("{% elif 0 %}", "", "", 100000) + "{% endif %}",
      "{% for " + nested("(", "a", ",)", 100000) + " in [1] %}{% endfor %}",
      "{{ 'x' * 99999999999 }}",
      "{{ [1] * 99999999999 }}",
      "{{ 2 ** 99999999 }}",
      "{{ '%999999999d' % 1 }}",
      "{{ '{:999999999}'.format(1) }}",
      "{{ 'a'.center(999999999) }}",
      "{{ 'a'|indent(999999999, true) }}",
      "{{ [[1]]|tojson(indent=999999999) }}",
      "{{ [1, 2]|batch(9, 'x')|list|slice(99999999)|list }}",
      "{{ 'a b'|replace('', 'x' * 1000000)|replace('', 'x' * 1000000) }}",
      "{{ range(-9223372036854775807, 9223372036854775807, 1) }}",
      "{{ strftime_now('%c' * 100000) }}",
      "{% set x = 'ab' * 1000000 %}{% for i in range(99999) %}{% if 'zz' in x %}{% endif %}{% endfor %}",
      "{% set x = range(99999)|list %}{% for i in x %}{% if x == x|list %}{% endif %}{% endfor %}",
      "{% set x = range(99999)|list %}{% for i in x %}{{ x|sort|first }}{% endfor %}",
      "{% for i in range(99999) %}{% for c in 'ab' * 100000 %}{% endfor %}{% endfor %}",
      "{% for i in range(99999) %}{{ 'x' * 100000 }}{% endfor %}",
  };
  for (const std::string& source : hostile) {
    SCOPED_TRACE(source.substr(0, 120));
    const std::string error = error_of(source, {}, {.steps = 2'000'000});
    EXPECT_NE(error, "");
    EXPECT_LT(error.size(), 600u);
  }
}

TEST_F(Template, EndlessCyclesAreFreed) {
  const ChatText text = ChatTemplate::parse(
                            "{% set ns = namespace() %}{% set ns.self = ns %}"
                            "{% macro m() %}{{ ns.self is defined }}{% endmacro %}{% set ns.m = m %}{{ ns.m() }}")
                            .render({});
  EXPECT_EQ(text.text, "True");
}

TEST_F(Template, LimitsAreTheCallers) {
  EXPECT_EQ(error_of("{% for i in range(50) %}x{% endfor %}", {}, {.steps = 10000}), "");
  EXPECT_NE(error_of("{% for i in range(50) %}x{% endfor %}", {}, {.steps = 40}).find("more than 40 steps"),
            std::string::npos);
  EXPECT_NE(error_of("{{ 'x' * 100 }}", {}, {.output = 99}).find("more than 99 bytes"), std::string::npos);
  EXPECT_NE(error_of("{{ range(1000) | list }}", {}, {.memory = 10000}).find("memory"), std::string::npos);
}

TEST_F(Template, InvalidTextIsRefused) {
  EXPECT_NE(error_of("a\xff"), "");
  ChatInput input;
  input.messages = {{{"role", "user"}, {"content", "a\xff"}}};
  EXPECT_NE(error_of("{{ messages }}", input), "");
}

TEST_F(Template, ObjectsKeepTheirOrder) {
  ChatInput input;
  input.tools = parse_ordered_json(R"([{"z": 1, "a": {"y": 2, "b": 3}}])", "tools");
  EXPECT_EQ(ChatTemplate::parse("{{ tools | tojson }}").render(input).text, R"([{"z": 1, "a": {"y": 2, "b": 3}}])");
}

// --- Folders

class TemplateFolder : public Template {
 protected:
  void SetUp() override {
    Template::SetUp();
    folder_ = std::filesystem::path(testing::TempDir()) /
              ("templates-" + std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void write(const char* name, std::string_view text) const {
    std::filesystem::create_directories((folder_ / name).parent_path());
    std::ofstream(folder_ / name) << text;
  }
  [[nodiscard]] std::string rendered(bool tools = false) const {
    return ChatTemplate::load(folder_, tools).render({}).text;
  }

  std::filesystem::path folder_;
};

TEST_F(TemplateFolder, NamesWhatIsMissing) {
  EXPECT_FALSE(ChatTemplate::exists(folder_));
  write("tokenizer_config.json", R"({"bos_token": "<s>"})");
  EXPECT_FALSE(ChatTemplate::exists(folder_));
  EXPECT_THROW((void)ChatTemplate::load(folder_), Error);
}

TEST_F(TemplateFolder, ReadsTheTokenizersConfig) {
  write(
      "tokenizer_config.json",
      R"({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": null, "chat_template": "{{ bos_token }}{{ eos_token }}{{ pad_token }}!"})");
  EXPECT_TRUE(ChatTemplate::exists(folder_));
  EXPECT_EQ(rendered(), "<s></s>!");
}

TEST_F(TemplateFolder, ChoosesAmongNamedOnes) {
  write("tokenizer_config.json",
        R"({"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]})");
  EXPECT_EQ(rendered(), "D");
  EXPECT_EQ(rendered(true), "T");
  write("tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": "R"}]})");
  EXPECT_THROW((void)rendered(), Error);
}

TEST_F(TemplateFolder, PrefersTheFileOfItsOwn) {
  write("chat_template.json", R"({"chat_template": "P"})");
  EXPECT_EQ(rendered(), "P");
  write("tokenizer_config.json", R"({"chat_template": "C"})");
  EXPECT_EQ(rendered(), "C");
  write("chat_template.jinja", "J\n");
  EXPECT_EQ(rendered(), "J");
  write("additional_chat_templates/tool_use.jinja", "T");
  EXPECT_EQ(rendered(), "J");
  EXPECT_EQ(rendered(true), "T");
}

}  // namespace
}  // namespace elapid
