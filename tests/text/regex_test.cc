#include "elapid/text/regex.h"

#include "elapid/core/error.h"
#include "tests/text/support.h"

#include <gtest/gtest.h>

namespace elapid::test {
namespace {

std::vector<std::string> matches(std::string_view pattern, std::string_view text) {
  const Regex regex = Regex::compile(pattern, "test");
  RegexScanner scanner(regex);
  RegexScanner::Event event;
  std::vector<std::string> found;
  for (size_t at = 0; scanner.next(text, at, true, event); at = event.end) {
    if (event.match) found.emplace_back(text.substr(event.begin, event.end - event.begin));
  }
  return found;
}

using Strings = std::vector<std::string>;

TEST(Regex, MeansWhatOnigurumaMeans) {
  EXPECT_EQ(matches(R"(\w+)", "caf\u00e9 e\u0301 x\u00b2 a_b \u203f"),
            (Strings{"caf\u00e9", "e\u0301", "x\u00b2", "a_b", "\u203f"}));
  EXPECT_EQ(matches(R"([\w]+|[\W])", "x\u00b2"), (Strings{"x", "\u00b2"})) << "unlike outside of brackets";
  EXPECT_EQ(matches(R"(\s)", "\u180e\u0085\u3000x"), (Strings{"\u0085", "\u3000"}));
  EXPECT_EQ(matches(R"(\h+)", "12afG \t"), (Strings{"12af"}));
  EXPECT_EQ(matches("^b$", "a\nb\nc"), (Strings{"b"}));
  EXPECT_EQ(matches("a.c", "a\nc"), Strings{});
  EXPECT_EQ(matches("(?m)a.c", "a\nc"), (Strings{"a\nc"}));
  EXPECT_EQ(matches("(?m:a.c)|(?i:B)", "a\ncb"), (Strings{"a\nc", "b"}));
  EXPECT_EQ(matches("a{,2}", "aaa"), (Strings{"aa", "a"}));
  EXPECT_EQ(matches("a{b}{", "a{b}{"), (Strings{"a{b}{"}));
  EXPECT_EQ(matches(R"([^\S\n]+)", "a \n\tb"), (Strings{" ", "\t"}));
  EXPECT_EQ(matches(R"(\p{Han}+)", "\u4e2d\u3005\u3001\u3400"), (Strings{"\u4e2d\u3005", "\u3400"}));
  EXPECT_EQ(matches(R"(\p{^L}|\P{L})", "a1"), (Strings{"1"}));
  EXPECT_EQ(matches(R"(\bfoo\b)", "foo foo\u0301 _foo foo"), (Strings{"foo", "foo"}));
  EXPECT_EQ(matches(R"(\u00e9|\x{1F600}|\x41)", "\u00e9A\U0001F600"), (Strings{"\u00e9", "A", "\U0001F600"}));
  // A letter of Unicode 16.
  EXPECT_EQ(matches(R"(\p{L}|[^\p{L}\p{N}])", "\U00016100\U00010D40"), (Strings{"\U00016100"}));
  EXPECT_EQ(matches("x*", "axb"), (Strings{"", "x", ""}));
  EXPECT_EQ(matches(R"([[:space:][:punct:]]+)", "a !b"), (Strings{" !"}));
}

TEST(Regex, RefusesWhatItCannotTranslate) {
  for (const char* pattern : {"[a&&b]", "[a[b]]", "a{2}+",        "a{1,2}+", "a{2}?",       "(?<n>a)", "(?~a)", "\\X",
                              "\\K",    "\\G",    "\\p{Klingon}", "\\pL",    "(?s)a",       "\\",      "[a",    "(a",
                              "a)",     "*",      "\\xff",        "\\u12",   "[[:upper:]]", "\\k<a>",  "(?"}) {
    EXPECT_THROW((void)Regex::compile(pattern, "test"), Error) << pattern;
  }
  EXPECT_THROW((void)Regex::literal("", "test"), Error);
  EXPECT_THROW((void)Regex::compile(std::string(100'000, 'a'), "test"), Error);
}

TEST(Regex, AnExponentialMatchIsAnError) {
  const Regex regex = Regex::compile("(?:a+)+$", "test");
  const std::string text = std::string(60, 'a') + "b";
  EXPECT_THROW((void)regex.find(text, 0, false), Error);
}

TEST(Regex, PartialMatchesAreWaitedFor) {
  const Regex regex = Regex::compile(R"(\s+(?!\S)|\s+|\w+)", "test");
  EXPECT_EQ(regex.find("abc", 0, true).kind, Regex::Match::partial);
  const Regex::Match word = regex.find("abc de", 0, true);
  EXPECT_EQ(word.kind, Regex::Match::found);
  EXPECT_EQ(word.end, 3u);
  EXPECT_EQ(regex.find("  ", 0, true).kind, Regex::Match::partial);
  EXPECT_EQ(regex.find("  x", 0, true).end, 1u);
}

}  // namespace
}  // namespace elapid::test
