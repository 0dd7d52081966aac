#include "elapid/core/error.h"
#include "elapid/text/tokenizer.h"
#include "tests/text/support.h"

#include <cstdlib>
#include <gtest/gtest.h>
#include <new>

namespace elapid::test {
namespace {

std::vector<TokenId> stream(const Tokenizer& tokenizer, std::string_view text, std::mt19937& random, size_t most) {
  EncodeStream encoder(tokenizer);
  std::vector<TokenId> ids;
  for (size_t at = 0; at < text.size();) {
    const size_t size = std::uniform_int_distribution<size_t>(1, most)(random);
    encoder.push(text.substr(at, size), ids);
    at += std::min(size, text.size() - at);
  }
  encoder.finish(ids);
  return ids;
}

TEST(EncodeStream, AnyCutGivesTheIdsOfTheWhole) {
  std::mt19937 random(1);
  for (const GoldenCase& golden : golden_cases()) {
    const Tokenizer tokenizer = golden_tokenizer(golden);
    std::vector<std::string> texts = golden_texts();
    for (int i = 0; i < 6; ++i) texts.push_back(random_text(random, 40));
    texts.push_back(random_text(random, 600));
    for (const std::string& text : texts) {
      const std::vector<TokenId> whole = tokenizer.encode(text);
      for (const size_t most : {size_t{1}, size_t{3}, size_t{17}, size_t{400}}) {
        ASSERT_EQ(stream(tokenizer, text, random, most), whole)
            << golden.name << ", pieces to " << most << ": " << text;
      }
    }
  }
}

TEST(EncodeStream, LongTextsOfEveryTokenizer) {
  std::mt19937 random(2);
  for (const GoldenCase& golden : golden_cases()) {
    const Tokenizer tokenizer = golden_tokenizer(golden);
    const std::string text = random_text(random, 4000);
    ASSERT_EQ(stream(tokenizer, text, random, 2000), tokenizer.encode(text)) << golden.name;
  }
}

TEST(Tokenizer, TheUsualEndOfTextWhereNoneIsNamed) {
  EXPECT_FALSE(golden_tokenizer("Llama 2").end_of_text());  // no configuration beside the file
  for (const GoldenCase& golden : golden_cases()) {
    if (golden.name != "byte-level") continue;
    Json file = golden.file;
    file["added_tokens"] = Json::array({{{"id", 9999}, {"content", "<|endoftext|>"}, {"special", true}}});
    const Tokenizer tokenizer = Tokenizer::parse(file.dump(), "x");
    EXPECT_EQ(tokenizer.end_of_text(), tokenizer.token_to_id("<|endoftext|>"));
    EXPECT_TRUE(tokenizer.end_of_text());
  }
}

TEST(EncodeStream, EmptyTextAndEmptyPieces) {
  const Tokenizer tokenizer = golden_tokenizer("template");
  EncodeStream empty(tokenizer);
  std::vector<TokenId> ids;
  empty.finish(ids);
  EXPECT_EQ(ids, tokenizer.encode(""));
  EXPECT_EQ(ids.size(), 3u);

  EncodeStream pieces(tokenizer);
  ids.clear();
  for (const std::string_view piece : {"", "he", "", "llo", ""}) pieces.push(piece, ids);
  pieces.finish(ids);
  EXPECT_EQ(ids, tokenizer.encode("hello"));
  EXPECT_THROW(pieces.push("x", ids), Error);
}

// Whatever a tokenizer puts in front of a text, it does not put in front of one that goes on from another.
TEST(EncodeStream, ContinuesAText) {
  const EncodeOptions options{.continues = true};
  for (const std::string_view name : {"byte-level", "Llama 2", "Metaspace always True", "Metaspace first False"}) {
    const Tokenizer tokenizer = golden_tokenizer(name);
    const std::vector<TokenId> ids = tokenizer.encode("hello", options);
    EncodeStream encoder(tokenizer, options);
    std::vector<TokenId> streamed;
    for (const char* const piece : {"h", "", "ello"}) encoder.push(piece, streamed);
    encoder.finish(streamed);
    EXPECT_EQ(streamed, ids) << name;
    // After a text and at its beginning, the decoded text is the two together.
    const std::string first = "a song";
    std::vector<TokenId> both = tokenizer.encode(first, {.add_special_tokens = false});
    const std::string before = tokenizer.decode(both);
    both.insert(both.end(), ids.begin(), ids.end());
    EXPECT_EQ(tokenizer.decode(both), before + "hello") << name;
  }
}

TEST(EncodeStream, InvalidUtf8IsAnErrorWithItsOffset) {
  const Tokenizer tokenizer = golden_tokenizer("byte-level");
  const auto message = [&](const std::vector<std::string_view>& pieces) -> std::string {
    EncodeStream encoder(tokenizer);
    std::vector<TokenId> ids;
    try {
      for (const std::string_view piece : pieces) encoder.push(piece, ids);
      encoder.finish(ids);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_NE(message({"ab\xFF"}).find("offset 2"), std::string::npos);
  EXPECT_NE(message({"abc", "\xE4\xBD", "x"}).find("offset 3"), std::string::npos);
  EXPECT_NE(message({"\xE4\xBD", "\xA0", "\xED\xA0\x80"}).find("offset 3"), std::string::npos);
  EXPECT_NE(message({"ab\xF0\x9F"}).find("offset 2"), std::string::npos);
  EXPECT_EQ(message({"ab\xF0\x9F", "\x98", "\x80"}), "no error");
}

// Ids leave while text comes in: a stream that keeps everything to the end would pass the other tests.
TEST(EncodeStream, KeepsOnlyWhatIsUndecided) {
  std::string prose;
  for (int i = 0; i < 3000; ++i) prose += "The quick brown fox, aged " + std::to_string(i) + ", didn't jump over it.\n";
  for (const std::string_view name :
       {"byte-level", "NFC", "Split Llama 3", "StarCoder", "Falcon", "Llama 2", "Lowercase", "Metaspace always True",
        "Metaspace first False", "Whitespace", "Strip True True", "Digits contiguous", "added stripping both",
        "added with NFC", "Replace words"}) {
    const Tokenizer tokenizer = golden_tokenizer(name);
    const size_t expected = tokenizer.encode(prose).size();
    EncodeStream encoder(tokenizer);
    std::vector<TokenId> ids;
    size_t behind = 0;
    for (size_t at = 0; at < prose.size(); at += 100) {
      encoder.push(std::string_view(prose).substr(at, 100), ids);
      const size_t pushed = std::min(at + 100, prose.size());
      behind =
          std::max(behind, pushed * expected / prose.size() - std::min(ids.size(), pushed * expected / prose.size()));
    }
    encoder.finish(ids);
    EXPECT_EQ(ids.size(), expected) << name;
    EXPECT_LT(behind, 1500u) << name;
  }
}

}  // namespace
}  // namespace elapid::test
