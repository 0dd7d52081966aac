#include "elapid/io/json.h"

#include "tests/io/support.h"

#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <string>
#include <string_view>

namespace elapid {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

Json parse(std::string_view text) { return parse_json(text, "a.json"); }

void expect_parse_error(std::string_view text, std::initializer_list<std::string_view> parts) {
  expect_error([&] { parse(text); }, parts);
  expect_error([&] { parse(text); }, {"a.json: "});
}

std::string nested(size_t depth, char open, char close) { return std::string(depth, open) + std::string(depth, close); }

TEST(ParseJson, ReadsEveryKindOfValue) {
  const Json json =
      parse(R"( {"a": [1, -2, 2.5, 1e3, true, false, null], "b": {"c": "d\u00e9\ud83d\ude00"}, "": []} )");
  EXPECT_EQ(json, (Json{{"a", {1, -2, 2.5, 1000.0, true, false, nullptr}},
                        {"b", {{"c", "d\u00e9\U0001F600"}}},
                        {"", Json::array()}}));
  EXPECT_EQ(parse("7"), 7);
  EXPECT_EQ(parse("\"x\""), "x");
}

TEST(ParseJson, WrapsBareFloats) {
  EXPECT_EQ(
      parse(R"({"a": Infinity, "b": [-Infinity, NaN], "c": 1})"),
      parse(R"({"a": {"__float__": "Infinity"}, "b": [{"__float__": "-Infinity"}, {"__float__": "NaN"}], "c": 1})"));
  EXPECT_EQ(json_number(parse("Infinity"), "x"), kInfinity);
  EXPECT_EQ(json_number(parse("\t-Infinity\n"), "x"), -kInfinity);
}

TEST(ParseJson, LeavesFloatNamesInStringsAlone) {
  EXPECT_EQ(parse(R"(["Infinity", "-Infinity", "NaN", "a \" NaN", "\\", "\\\" Infinity", {"NaN": "Infinity,"}])"),
            (Json{"Infinity", "-Infinity", "NaN", "a \" NaN", "\\", "\\\" Infinity", {{"NaN", "Infinity,"}}}));
  // After a string that ends in an escaped backslash we are outside again.
  EXPECT_EQ(json_number(parse(R"(["\\", Infinity])")[1], "x"), kInfinity);
}

TEST(ParseJson, RefusesBareFloatsInWrongPlaces) {
  for (const std::string_view text : {"{NaN: 1}", "[1 NaN]", "[NaN NaN]", "[1NaN]", "[--Infinity]", "[+Infinity]",
                                      "[-NaN]", "[Infinit]", "[infinity]", "[NaNNaN]", "Infinity1", "[nan]"}) {
    SCOPED_TRACE(text);
    expect_parse_error(text, {"must be valid JSON"});
  }
}

TEST(ParseJson, SaysWhere) {
  expect_parse_error("", {"got unexpected end of input at byte 0"});
  expect_parse_error("   ", {"got unexpected end of input at byte 3"});
  expect_parse_error("[1, 2", {"unexpected end of input at byte 5"});
  expect_parse_error("[1, x]", {"invalid literal at byte 4"});
  expect_parse_error("{\"a\": 1,}", {"at byte 8"});
  expect_parse_error("{} {}", {"at byte 3"});
  // Offsets are those of the text as given, not of the text with floats wrapped.
  expect_parse_error("[NaN, Infinity, x]", {"at byte 16"});
  expect_parse_error("[NaN, -Infinity}", {"at byte 15"});
  expect_parse_error("[1 NaN]", {"at byte 3"});
  expect_parse_error("[NaN", {"end of input at byte 4"});
}

TEST(ParseJson, RefusesWhatIsNotJson) {
  for (const std::string_view text :
       {"nul", "tru\ne", "'a'",  "[1,]",    "[,1]",  "{\"a\"}", "{1: 2}", "01",      "1.",
        ".5",  "+1",     "0x10", "// c\n1", "/**/1", "\"a",     "\"\t\"", "\"\\x\"", "\"\\u12\"",
        "]",   "}",      "[}",   "{]",      "\x01",  "1e",      "--1"}) {
    SCOPED_TRACE(text);
    expect_parse_error(text, {"must be valid JSON, got ", " at byte "});
  }
}

TEST(ParseJson, RefusesInvalidUnicode) {
  expect_parse_error("\"ab\xff\"", {"UTF-8", "at byte 3"});
  expect_parse_error("\"\xc0\x80\"", {"UTF-8"});                // overlong
  expect_parse_error("\"\xed\xa0\x80\"", {"UTF-8"});            // a surrogate
  expect_parse_error("\"\xf4\x90\x80\x80\"", {"UTF-8"});        // beyond U+10FFFF
  expect_parse_error("\"\xe2\x82\"", {"UTF-8"});                // cut off
  expect_parse_error("{\"\xff\": 1}", {"UTF-8"});               // in a key
  expect_parse_error("\"\\ud800\"", {"surrogate"});             // a lone high one
  expect_parse_error("\"\\udc00\"", {"surrogate"});             // a lone low one
  expect_parse_error("\"\\ud800\\u0041\"", {"surrogate"});      // a high one before a letter
  expect_parse_error("\xef\xbb\xbf{}", {"a byte order mark"});  // as Python's json module does
}

TEST(ParseJson, RefusesZeroBytes) {
  using namespace std::string_view_literals;
  expect_parse_error("{}\0"sv, {"a zero byte at byte 2"});
  expect_parse_error("{}\0garbage"sv, {"a zero byte at byte 2"});
  expect_parse_error("\"a\0b\""sv, {"a zero byte at byte 2"});
  EXPECT_EQ(parse(R"("a\u0000b")"), Json("a\0b"sv));
}

TEST(ParseJson, RefusesDuplicateKeys) {
  expect_parse_error(R"({"a": 1, "b": 2, "a": 3})", {"\"a\" twice"});
  expect_parse_error(R"({"x": [{"k": 1, "\u006b": 1}]})", {"\"k\" twice"});
  expect_parse_error("{\"" + std::string(100'000, 'k') + "\": 1, \"" + std::string(100'000, 'k') + "\": 1}", {"twice"});
  EXPECT_EQ(parse(R"({"a": {"a": {"a": 1}}, "b": [{"a": 1}, {"a": 2}]})")["b"][1]["a"], 2);
}

TEST(ParseJson, LimitsDepth) {
  EXPECT_EQ(parse(nested(256, '[', ']')).size(), 1);
  expect_parse_error(nested(257, '[', ']'), {"256 deep"});
  expect_parse_error(std::string(1'000'000, '['), {"256 deep"});
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  expect_parse_error(objects, {"256 deep"});
  std::string mixed;
  for (int i = 0; i < 100'000; ++i) mixed += "[{\"a\":";
  expect_parse_error(mixed, {"256 deep"});
  // Depth counts what is open, not how many there are.
  std::string wide = "[[]";
  for (int i = 0; i < 1000; ++i) wide += ",[[]]";
  EXPECT_EQ(parse(wide + "]").size(), 1001);
}

TEST(ParseJson, HugeNumbers) {
  expect_parse_error("[1e999]", {"a number out of range"});
  expect_parse_error("[-1e999]", {"a number out of range"});
  expect_parse_error("1" + std::string(100'000, '0'), {"a number out of range"});
  EXPECT_EQ(parse("1e-999").get<double>(), 0.0);
  EXPECT_EQ(parse("18446744073709551615").get<uint64_t>(), std::numeric_limits<uint64_t>::max());
  EXPECT_TRUE(parse("18446744073709551616").is_number_float());
  EXPECT_EQ(parse("-9223372036854775808").get<int64_t>(), kMin);
}

TEST(ParseJson, LongTokensMakeShortErrors) {
  expect_parse_error("[" + std::string(100'000, 'x'), {"must be valid JSON"});
  expect_parse_error("\"" + std::string(100'000, 'x'), {"must be valid JSON"});
  expect_parse_error("{\"a\": \"" + std::string(100'000, 'x') + "\" x}", {"must be valid JSON"});
}

TEST(JsonNumber, TakesNumbersAndInfinities) {
  EXPECT_EQ(json_number(parse("3"), "x"), 3.0);
  EXPECT_EQ(json_number(parse("-3"), "x"), -3.0);
  EXPECT_EQ(json_number(parse("0.1"), "x"), 0.1);
  EXPECT_EQ(json_number(parse(R"({"__float__": "Infinity"})"), "x"), kInfinity);
  EXPECT_EQ(json_number(parse(R"({"__float__": "-Infinity"})"), "x"), -kInfinity);
}

TEST(JsonNumber, TakesOnlyExactIntegers) {
  EXPECT_EQ(json_number(parse("9007199254740992"), "x"), 0x1p53);
  EXPECT_EQ(json_number(parse("-9223372036854775808"), "x"), -0x1p63);
  EXPECT_EQ(json_number(parse("9223372036854775808"), "x"), 0x1p63);
  expect_error([] { json_number(parse("9007199254740993"), "x"); }, {"x: ", "exactly", "9007199254740993"});
  expect_error([] { json_number(parse("-9007199254740993"), "x"); }, {"x: ", "-9007199254740993"});
  expect_error([] { json_number(parse("18446744073709551615"), "x"); }, {"x: ", "18446744073709551615"});
}

TEST(JsonNumber, RefusesTheRest) {
  expect_error([] { json_number(parse("NaN"), "eps"); }, {"eps: must be a number, got NaN"});
  expect_error([] { json_number(Json(std::nan("")), "eps"); }, {"eps: must be a number, got NaN"});
  expect_error([] { json_number(parse("\"1\""), "eps"); }, {"eps: must be a number, got \"1\""});
  expect_error([] { json_number(parse("\"Infinity\""), "eps"); }, {"got \"Infinity\""});
  expect_error([] { json_number(parse("true"), "eps"); }, {"got true"});
  expect_error([] { json_number(parse("null"), "eps"); }, {"got null"});
  expect_error([] { json_number(parse("[1]"), "eps"); }, {"got an array"});
  expect_error([] { json_number(parse(R"({"__float__": "inf"})"), "eps"); }, {"got an object"});
  expect_error([] { json_number(parse(R"({"__float__": 1})"), "eps"); }, {"got an object"});
  expect_error([] { json_number(parse(R"({"__float__": "Infinity", "b": 1})"), "eps"); }, {"got an object"});
}

TEST(JsonInteger, TakesIntegersInRange) {
  EXPECT_EQ(json_integer(parse("3"), "x", 0, 3), 3);
  EXPECT_EQ(json_integer(parse("3.0"), "x", 3, 9), 3);
  EXPECT_EQ(json_integer(parse("1e3"), "x", 0, kMax), 1000);
  EXPECT_EQ(json_integer(parse("-0.0"), "x", 0, 1), 0);
  EXPECT_EQ(json_integer(parse("9223372036854775807"), "x", kMin, kMax), kMax);
  EXPECT_EQ(json_integer(parse("-9223372036854775808"), "x", kMin, kMax), kMin);
  EXPECT_EQ(json_integer(parse("-9223372036854775808.0"), "x", kMin, kMax), kMin);
}

TEST(JsonInteger, RefusesTheRest) {
  const auto refuse = [](std::string_view text, std::string_view part) {
    SCOPED_TRACE(text);
    expect_error([&] { json_integer(parse(text), "layers", 1, 100); }, {"layers: must be an integer", "100", part});
  };
  refuse("0", "got 0");
  refuse("-1", "got -1");
  refuse("101", "got 101");
  refuse("3.5", "got 3.5");
  refuse("1e300", "got 1e+300");
  refuse("NaN", "got NaN");
  refuse("Infinity", "got Infinity");
  refuse("-Infinity", "got -Infinity");
  refuse("\"3\"", "got \"3\"");
  refuse("true", "got true");
  refuse("null", "got null");
  refuse("[3]", "got an array");
  refuse("{}", "got an object");
  expect_error([] { json_integer(parse("9223372036854775808"), "x", kMin, kMax); }, {"got 9223372036854775808"});
  expect_error([] { json_integer(parse("9223372036854775808.0"), "x", kMin, kMax); }, {"got 9.22337203685477"});
}

TEST(Quote, KeepsForeignTextOnOneShortLine) {
  EXPECT_EQ(quote("a b"), "\"a b\"");
  EXPECT_EQ(quote("a\n\"\x1b[0m"), R"("a\n\"\u001b[0m")");
  EXPECT_EQ(quote("\xff"), "\"\uFFFD\"");
  EXPECT_EQ(quote(std::string(1000, 'x')), "\"" + std::string(80, 'x') + "\"…");
}

TEST(OrderedJson, KeepsTheOrderOfKeys) {
  const std::string text = R"({"z":1,"a":{"y":[1.5,{"c":null,"b":true}],"x":"é"}})";
  EXPECT_EQ(parse_ordered_json(text, "text").dump(), text);
  EXPECT_EQ(parse_ordered_json("[Infinity]", "text")[0].dump(), R"({"__float__":"Infinity"})");
}

TEST(OrderedJson, RefusesWhatJsonRefuses) {
  for (const char* const text : {R"({"a":1,"b":2,"a":3})", "{} x", "[1e999]", "[", "\"\\ud800\"", ""}) {
    EXPECT_THROW((void)parse_ordered_json(text, "text"), Error) << text;
  }
  // In time, too: looking keys up one after another would take minutes.
  std::string many = "{\"k\":0";
  for (int i = 0; i < 200'000; ++i) many += ",\"" + std::to_string(i) + "\":0";
  EXPECT_EQ(parse_ordered_json(many + "}", "text").size(), 200'001u);
}

}  // namespace
}  // namespace elapid
