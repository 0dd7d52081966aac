#include "elapid/text/sentencepiece.h"

#include "elapid/core/error.h"
#include "elapid/io/file.h"
#include "elapid/io/json.h"
#include "elapid/text/stream_decoder.h"
#include "elapid/text/tokenizer.h"
#include "elapid/text/unicode.h"

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <random>

namespace elapid {
namespace {

const std::filesystem::path kFolder = std::filesystem::path(ELAPID_SOURCE_DIR) / "tests/data/sentencepiece";

std::string model_bytes(const std::string& name) { return read_text_file(kFolder / (name + ".model")); }

Tokenizer load(const std::string& name) { return Tokenizer::parse_sentencepiece(model_bytes(name), name); }

const Json& cases() {
  static const Json json = parse_json(read_text_file(kFolder / "cases.json"), "cases");
  return json;
}

std::vector<TokenId> streamed(const Tokenizer& tokenizer, std::string_view text, size_t piece, EncodeOptions options) {
  EncodeStream stream(tokenizer, options);
  std::vector<TokenId> ids;
  for (size_t at = 0; at < text.size(); at += piece) stream.push(text.substr(at, piece), ids);
  stream.finish(ids);
  return ids;
}

class SentencePiece : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Models, SentencePiece, testing::Values("bytes", "unknown"),
                         [](const auto& model) { return std::string(model.param); });

TEST_P(SentencePiece, EncodesAsThePackage) {
  const Tokenizer tokenizer = load(GetParam());
  const Json& golden = cases().at(GetParam());
  EXPECT_EQ(tokenizer.vocab_size(), golden.at("size").get<int64_t>());
  ASSERT_GE(golden.at("encode").size(), 80u);
  for (const Json& each : golden.at("encode")) {
    const auto text = each[0].get<std::string>();
    auto expected = each[1].get<std::vector<TokenId>>();
    EXPECT_EQ(tokenizer.encode(text, {.add_special_tokens = false}), expected) << each[0];
    for (const size_t piece : {1, 3, 50}) {
      EXPECT_EQ(streamed(tokenizer, text, piece, {.add_special_tokens = false}), expected) << each[0];
    }
    expected.insert(expected.begin(), golden.at("bos").get<TokenId>());
    EXPECT_EQ(tokenizer.encode(text), expected) << each[0];
  }
}

TEST_P(SentencePiece, DecodesAsThePackage) {
  const Tokenizer tokenizer = load(GetParam());
  for (const Json& each : cases().at(GetParam()).at("decode")) {
    const auto ids = each[0].get<std::vector<TokenId>>();
    EXPECT_EQ(tokenizer.decode(ids), each[1].get<std::string>()) << each[0];
    StreamDecoder decoder(tokenizer);
    std::string text;
    for (const TokenId id : ids) {
      const std::string part = decoder.push(id);
      EXPECT_EQ(unicode::valid_utf8_prefix(part), part.size()) << each[0];
      text += part;
    }
    text += decoder.finish();
    EXPECT_EQ(text, each[1].get<std::string>()) << each[0];
  }
}

// A long text without a word's end streams at bounded memory: ids leave long before the end.
TEST_P(SentencePiece, Streams) {
  const Tokenizer tokenizer = load(GetParam());
  std::string text;
  for (int i = 0; i < 20'000; ++i) text += i % 7 == 0 ? "the old house, " : "and so ";
  EncodeStream stream(tokenizer, {.add_special_tokens = false});
  std::vector<TokenId> ids;
  stream.push(std::string_view(text).substr(0, text.size() / 2), ids);
  EXPECT_GT(ids.size(), 20'000u);
  stream.push(std::string_view(text).substr(text.size() / 2), ids);
  stream.finish(ids);
  EXPECT_EQ(ids, tokenizer.encode(text, {.add_special_tokens = false}));
}

TEST(SentencePieceModels, ControlTokensWhenAsked) {
  const Tokenizer tokenizer = load("bytes");
  const TokenId inst = *tokenizer.token_to_id("[INST]"), bos = *tokenizer.token_to_id("<s>");
  const EncodeOptions options{.add_special_tokens = false, .control_tokens = true};
  const std::vector<TokenId> ids = tokenizer.encode("<s>[INST] hi", options);
  std::vector<TokenId> expected = tokenizer.encode("hi", {.add_special_tokens = false});
  expected.insert(expected.begin(), {bos, inst});
  EXPECT_EQ(ids, expected);  // the space in the text is the one that a text of its own gets
  EXPECT_EQ(streamed(tokenizer, "<s>[INST] hi", 1, options), expected);
  EXPECT_TRUE(tokenizer.is_special(inst));
  EXPECT_FALSE(tokenizer.is_special(ids.back()));
  EXPECT_EQ(tokenizer.decode(ids), "hi");
  EXPECT_EQ(tokenizer.decode(ids, false), "<s>[INST] hi");
}

// What comes after a text gets nothing in front, wherever the text was cut.
// The package puts bytes together that stand side by side as pieces, whatever a text shows of what is between.
TEST(SentencePieceModels, AControlTokenEndsARunOfBytes) {
  const Tokenizer tokenizer = load("bytes");
  const auto id = [&](const char* piece) { return tokenizer.token_to_id(piece).value(); };
  const std::string lost = std::string(unicode::kReplacement) + std::string(unicode::kReplacement);
  for (const bool divided : {false, true}) {
    std::vector<TokenId> ids = {id("<0xCD>"), id("<0xA2>")};
    if (divided) ids.insert(ids.begin() + 1, id("</s>"));
    const std::string want = divided ? lost : "\xCD\xA2";
    EXPECT_EQ(tokenizer.decode(ids), want);
    StreamDecoder stream(tokenizer);
    std::string streamed;
    for (const TokenId each : ids) streamed += stream.push(each);
    EXPECT_EQ(streamed + stream.finish(), want);
  }
}

TEST_P(SentencePiece, ContinuesAText) {
  const Tokenizer tokenizer = load(GetParam());
  const EncodeOptions options{.continues = true};  // no special tokens either
  const std::string text = "the sing ing bird";
  for (size_t cut = 1; cut < text.size(); ++cut) {
    std::vector<TokenId> ids = tokenizer.encode(text.substr(0, cut));
    const std::string rest = text.substr(cut);
    const std::vector<TokenId> after = tokenizer.encode(rest, options);
    for (const size_t piece : {1, 3, 50}) EXPECT_EQ(streamed(tokenizer, rest, piece, options), after) << rest;
    ids.insert(ids.end(), after.begin(), after.end());
    EXPECT_EQ(tokenizer.decode(ids), text) << cut;
  }
}

TEST(SentencePieceModels, ContinuationsKeepTheirSpace) {
  const Tokenizer tokenizer = load("bytes");
  const std::vector<TokenId> ids = tokenizer.encode("the house", {.add_special_tokens = false});
  const auto text = [&](bool continues) {
    StreamDecoder decoder(tokenizer, {}, continues);
    std::string all;
    for (const TokenId id : ids) all += decoder.push(id);
    return all + decoder.finish();
  };
  EXPECT_EQ(text(false), "the house");
  EXPECT_EQ(text(true), " the house");
}

TEST(SentencePieceModels, FoldersSayWhichFileAndTokens) {
  const std::filesystem::path folder = std::filesystem::path(testing::TempDir()) / "sentencepiece-folder";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  EXPECT_FALSE(Tokenizer::find(folder).has_value());
  EXPECT_THROW((void)Tokenizer::load(folder), Error);
  const auto copy = [&](const char* model, const char* name) {
    std::ofstream(folder / name, std::ios::binary) << model_bytes(model);
  };
  copy("unknown", "tokenizer.model");
  EXPECT_EQ(Tokenizer::load(folder).vocab_size(), load("unknown").vocab_size());
  copy("bytes", "tokenizer.model.v3");
  EXPECT_EQ(Tokenizer::load(folder).vocab_size(), load("bytes").vocab_size());
  const auto with_config = [&](const char* config) {
    std::ofstream(folder / "tokenizer_config.json") << config;
    return Tokenizer::load(folder).encode("a");
  };
  const std::vector<TokenId> plain = load("bytes").encode("a", {.add_special_tokens = false});
  const auto wrapped = [&](std::vector<TokenId> before, const std::vector<TokenId>& after) {
    before.insert(before.end(), plain.begin(), plain.end());
    before.insert(before.end(), after.begin(), after.end());
    return before;
  };
  EXPECT_EQ(with_config("{}"), wrapped({1}, {}));
  EXPECT_EQ(Tokenizer::load(folder).end_of_text(), load("bytes").token_to_id("</s>"));
  (void)with_config(R"({"eos_token": {"content": "[INST]"}})");
  EXPECT_EQ(Tokenizer::load(folder).end_of_text(), load("bytes").token_to_id("[INST]"));
  EXPECT_EQ(with_config(R"({"add_bos_token": false, "eos_token": null})"), plain);
  EXPECT_EQ(with_config(R"({"add_eos_token": true})"), wrapped({1}, {2}));
  EXPECT_EQ(with_config(R"({"add_bos_token": true, "bos_token": "[INST]"})"),
            wrapped({*load("bytes").token_to_id("[INST]")}, {}));
  std::ofstream(folder / "tokenizer.json") << "{}";
  EXPECT_THROW((void)Tokenizer::load(folder), Error);  // the one that counts, and no tokenizer
  std::filesystem::remove_all(folder);
}

// --- Hostile files

std::string error_of(std::string_view bytes) {
  try {
    const Tokenizer tokenizer = Tokenizer::parse_sentencepiece(bytes, "model");
    (void)tokenizer.decode(tokenizer.encode("Hello, wörld [DOC_1]", {.control_tokens = true}), false);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(SentencePieceModels, DamagedFilesAreErrors) {
  const std::string good = model_bytes("unknown");
  ASSERT_EQ(error_of(good), "");
  EXPECT_NE(error_of(""), "");
  for (size_t size = 1; size < good.size(); size += 7) EXPECT_NE(error_of(good.substr(0, size)), "") << size;
  std::mt19937 random(3);
  for (int round = 0; round < 3000; ++round) {
    std::string damaged = good;
    for (int i = 0; i < 3; ++i) damaged[random() % damaged.size()] = static_cast<char>(random());
    const std::string error = error_of(damaged);
    EXPECT_EQ(error.find('\n'), std::string::npos);
    EXPECT_LT(error.size(), 400u);
  }
}

std::string field(int number, std::string_view bytes) {
  return std::string{static_cast<char>(number << 3 | 2), static_cast<char>(bytes.size())} + std::string(bytes);
}
std::string number(int of, int value) { return {static_cast<char>(of << 3), static_cast<char>(value)}; }
std::string piece(std::string_view text, int type = 1) { return field(1, field(1, text) + number(3, type)); }

TEST(SentencePieceModels, WhatIsNotSupportedIsNamed) {
  const std::string bpe = field(2, number(3, 2)), plain = field(3, number(4, 0));
  const std::string start = piece("<unk>", 2) + piece("a") + piece("b");
  EXPECT_EQ(error_of(start + bpe + plain), "");
  const auto names = [&](const std::string& bytes, const char* what) {
    EXPECT_NE(error_of(bytes).find(what), std::string::npos) << error_of(bytes);
  };
  names(start + plain, "unigram");
  names(start + bpe, "remove_extra_whitespaces");
  names(start + bpe + field(3, number(4, 1)), "remove_extra_whitespaces");
  names(start + bpe + field(3, number(4, 0) + field(2, "table")), "identity");
  names(start + bpe + plain + piece("ab", 5), "unused");
  names(start + bpe + plain + piece("a"), "differ");
  names(start + bpe + plain + piece("xy"), "characters");
  names(start + bpe + plain + piece("\xff"), "UTF-8");
  names(start + bpe + plain + piece(""), "empty");
  names(start + bpe + plain + piece("<0xZZ>", 6), "byte piece");
  names(start + plain + field(2, number(3, 2) + std::string("\x98\x02\x01", 3)), "every byte");
  names(piece("a") + bpe + plain, "unknown piece");
  names("\x0b", "kind");
  names(std::string(11, '\xff'), "64 bits");
}

}  // namespace
}  // namespace elapid
