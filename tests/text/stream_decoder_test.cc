#include "elapid/text/stream_decoder.h"

#include "elapid/core/error.h"
#include "tests/text/support.h"

#include <gtest/gtest.h>

namespace elapid::test {
namespace {

bool valid_utf8(std::string_view text) { return unicode::valid_utf8_prefix(text) == text.size(); }

// The byte tokens of a byte-level vocabulary, in order.
std::vector<TokenId> byte_ids(const Tokenizer& tokenizer, std::string_view bytes) {
  static const std::vector<std::string> spelling = [] {
    std::vector<std::string> all(256);
    char32_t next = 256;
    for (size_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
      unicode::append(all[byte], printable ? static_cast<char32_t>(byte) : next++);
    }
    return all;
  }();
  std::vector<TokenId> ids;
  for (const char byte : bytes)
    ids.push_back(tokenizer.token_to_id(spelling[static_cast<unsigned char>(byte)]).value());
  return ids;
}

TEST(StreamDecoder, SaysTogetherWhatDecodeSays) {
  std::mt19937 random(3);
  for (const GoldenCase& golden : golden_cases()) {
    const Tokenizer tokenizer = golden_tokenizer(golden);
    std::vector<std::vector<TokenId>> sequences = {{}};
    for (const auto& ids : golden.ids) {
      if (ids) sequences.push_back(*ids);
    }
    for (int i = 0; i < 30; ++i) {
      std::vector<TokenId> ids(std::uniform_int_distribution<size_t>(1, 40)(random));
      for (TokenId& id : ids) {
        id = std::uniform_int_distribution<TokenId>(0, static_cast<TokenId>(tokenizer.vocab_size()) - 1)(random);
      }
      sequences.push_back(ids);
    }
    for (const std::vector<TokenId>& ids : sequences) {
      StreamDecoder decoder(tokenizer);
      std::string text;
      for (const TokenId id : ids) {
        const std::string piece = decoder.push(id);
        ASSERT_TRUE(valid_utf8(piece)) << golden.name;
        text += piece;
      }
      text += decoder.finish();
      ASSERT_EQ(text, tokenizer.decode(ids)) << golden.name;
      ASSERT_FALSE(decoder.stopped());
    }
  }
}

TEST(StreamDecoder, HoldsBackAnUnfinishedCharacter) {
  const Tokenizer tokenizer = golden_tokenizer("byte-level");
  StreamDecoder decoder(tokenizer);
  std::vector<std::string> pieces;
  for (const TokenId id : byte_ids(tokenizer, "a\U0001F600\xE4\xBDz\xFF\xC3")) pieces.push_back(decoder.push(id));
  pieces.push_back(decoder.finish());
  // A truncated character is one U+FFFD, said once the next byte shows that it is.
  const std::vector<std::string> expected = {"a", "", "", "", "\U0001F600", "", "", "\uFFFDz", "\uFFFD", "", "\uFFFD"};
  EXPECT_EQ(pieces, expected);
}

TEST(StreamDecoder, ReplacesInvalidBytesAsDecodeDoes) {
  const Tokenizer tokenizer = golden_tokenizer("byte-level");
  struct {
    std::string_view bytes, text;
  } const cases[] = {
      {"\xF0\x90\x80", "\uFFFD"},
      {"\xF0\x90\x41", "\uFFFD\u0041"},
      {"\xC0\x80", "\uFFFD\uFFFD"},
      {"\xE0\x80\x80", "\uFFFD\uFFFD\uFFFD"},
      {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},
      {"\xF4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"},
      {"\x80\xBF", "\uFFFD\uFFFD"},
      {"\xE1\x80\xE2\x82\xAC", "\uFFFD\u20AC"},
  };
  for (const auto& each : cases) EXPECT_EQ(tokenizer.decode(byte_ids(tokenizer, each.bytes)), each.text);
}

struct Stopped {
  std::string text;
  bool stopped;
};

Stopped run(const Tokenizer& tokenizer, const std::vector<TokenId>& ids, const std::vector<std::string>& stops) {
  StreamDecoder decoder(tokenizer, stops);
  std::string text;
  for (const TokenId id : ids) text += decoder.push(id);
  text += decoder.finish();
  return {text, decoder.stopped()};
}

TEST(StreamDecoder, StopsAcrossTokenBorders) {
  const Tokenizer tokenizer = golden_tokenizer("byte-level");
  struct {
    std::string text;
    std::vector<std::string> stops;
    std::string expected;
    bool stopped;
  } const cases[] = {
      {"one STOP two", {"STOP"}, "one ", true},
      {"one STO", {"STOP"}, "one STO", false},
      {"SSTOP", {"STOP"}, "S", true},
      {"aaab", {"aab"}, "a", true},
      {"abc", {"b", "abc"}, "a", true},    // "b" is complete first
      {"xabc", {"bc", "abc"}, "x", true},  // of two that end together the longer
      {"line\n\nnext", {"\n\n"}, "line", true},
      {"caf\u00e9 au lait", {"\u00e9"}, "caf", true},
      {"STOP", {"STOP"}, "", true},
      {"nothing", {"STOP", "zzz"}, "nothing", false},
  };
  for (const auto& each : cases) {
    for (const std::vector<TokenId>& ids : {tokenizer.encode(each.text), byte_ids(tokenizer, each.text)}) {
      const Stopped got = run(tokenizer, ids, each.stops);
      EXPECT_EQ(got.text, each.expected) << each.text;
      EXPECT_EQ(got.stopped, each.stopped) << each.text;
    }
  }
}

TEST(StreamDecoder, StopStringsDoNotDependOnTheTokens) {
  const Tokenizer tokenizer = golden_tokenizer("byte-level");
  std::mt19937 random(4);
  for (int i = 0; i < 400; ++i) {
    std::string text;
    for (int j = 0; j < 30; ++j) text.push_back("ab "[std::uniform_int_distribution<size_t>(0, 2)(random)]);
    std::vector<std::string> stops;
    for (int j = 0; j < 2; ++j) {
      std::string stop;
      for (size_t k = std::uniform_int_distribution<size_t>(1, 6)(random); k > 0; --k) {
        stop.push_back("ab "[std::uniform_int_distribution<size_t>(0, 2)(random)]);
      }
      stops.push_back(stop);
    }
    size_t end = std::string::npos, begin = 0;
    for (const std::string& stop : stops) {
      const size_t at = text.find(stop);
      if (at == std::string::npos) continue;
      if (end == std::string::npos || at + stop.size() < end || (at + stop.size() == end && at < begin)) {
        begin = at;
        end = at + stop.size();
      }
    }
    const std::string expected = end == std::string::npos ? text : text.substr(0, begin);
    for (const std::vector<TokenId>& ids : {tokenizer.encode(text), byte_ids(tokenizer, text)}) {
      const Stopped got = run(tokenizer, ids, stops);
      ASSERT_EQ(got.text, expected) << "'" << text << "' '" << stops[0] << "' '" << stops[1] << "'";
      ASSERT_EQ(got.stopped, end != std::string::npos);
    }
  }
}

TEST(StreamDecoder, SaysNothingAfterAStop) {
  const Tokenizer tokenizer = golden_tokenizer("byte-level");
  StreamDecoder decoder(tokenizer, {"!"});
  for (const TokenId id : tokenizer.encode("hi! there")) (void)decoder.push(id);
  EXPECT_TRUE(decoder.stopped());
  EXPECT_EQ(decoder.push(tokenizer.encode("x")[0]), "");
  EXPECT_EQ(decoder.finish(), "");
}

TEST(StreamDecoder, ReplacementAtTheEndCanCompleteAStop) {
  const Tokenizer tokenizer = golden_tokenizer("byte-level");
  const Stopped got = run(tokenizer, byte_ids(tokenizer, "ok\xE4"), {"\uFFFD"});
  EXPECT_EQ(got.text, "ok");
  EXPECT_TRUE(got.stopped);
}

TEST(StreamDecoder, RefusesAnEmptyStopStringAndUnknownIds) {
  const Tokenizer tokenizer = golden_tokenizer("byte-level");
  EXPECT_THROW(StreamDecoder(tokenizer, {""}), Error);
  StreamDecoder decoder(tokenizer);
  EXPECT_THROW((void)decoder.push(static_cast<TokenId>(tokenizer.vocab_size())), Error);
  EXPECT_THROW((void)decoder.push(-1), Error);
}

}  // namespace
}  // namespace elapid::test
