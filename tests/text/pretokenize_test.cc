#include "elapid/text/pretokenize.h"

#include "elapid/text/regex.h"
#include "tests/text/support.h"

#include <gtest/gtest.h>

namespace elapid::test {
namespace {

const Regex& gpt2() {
  static const Regex regex =
      Regex::compile(R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)", "GPT-2");
  return regex;
}

void expect_same_matches(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const Regex::Match match = gpt2().find(text, at, false);
    ASSERT_EQ(match.kind, Regex::Match::found);
    ASSERT_EQ(match.begin, at);
    ASSERT_EQ(match_gpt2(text.substr(at), true), match.end - at) << "at " << at << " of " << text;
    at = match.end;
  }
}

TEST(Gpt2Matcher, EqualsTheExpression) {
  for (const std::string& text : golden_texts()) expect_same_matches(text);
  std::mt19937 random(5);
  for (int i = 0; i < 2000; ++i) expect_same_matches(random_text(random, 30));
}

TEST(Gpt2Matcher, EqualsTheExpressionOnEveryCharacter) {
  std::string text;
  for (char32_t code = 0; code < unicode::kEnd; ++code) {
    if (code - 0xD800 < 0x800) continue;
    text.push_back('a');
    unicode::append(text, code);
    text.append("1 ");
    unicode::append(text, code);
    text.append(" !");
    if (text.size() > 4000) {
      expect_same_matches(text);
      text.clear();
    }
  }
  expect_same_matches(text);
}

// A length given while more may follow is that of every continuation.
TEST(Gpt2Matcher, DecidesOnlyWhatIsCertain) {
  std::mt19937 random(6);
  for (int i = 0; i < 3000; ++i) {
    const std::string text = random_text(random, 6);
    for (size_t end = 1; end < text.size(); ++end) {
      const std::string_view part = std::string_view(text).substr(0, end);
      if (unicode::valid_utf8_prefix(part) != end) continue;
      const size_t length = match_gpt2(part, false);
      if (length == 0) continue;
      ASSERT_EQ(length, match_gpt2(text, true)) << text << " cut at " << end;
    }
  }
}

TEST(Gpt2Matcher, KnownWords) {
  const auto words = [](std::string_view text) {
    std::vector<std::string> all;
    while (!text.empty()) {
      all.emplace_back(text.substr(0, match_gpt2(text, true)));
      text.remove_prefix(all.back().size());
    }
    return all;
  };
  EXPECT_EQ(words("It's  42, isn't it?\n\n x"),
            (std::vector<std::string>{"It", "'s", " ", " 42", ",", " isn", "'t", " it", "?", "\n\n", " x"}));
  EXPECT_EQ(words("'llama 'S"), (std::vector<std::string>{"'ll", "ama", " '", "S"}));
}

}  // namespace
}  // namespace elapid::test
