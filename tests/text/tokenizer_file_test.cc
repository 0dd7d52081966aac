#include "elapid/core/error.h"
#include "elapid/text/tokenizer.h"
#include "tests/text/support.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <thread>

namespace elapid::test {
namespace {

const Json& valid_file() {
  static const Json file = Json::parse(R"({
    "version": "1.0",
    "added_tokens": [{"id": 0, "content": "<s>", "special": true, "normalized": false}, {"id": 5, "content": "new"}],
    "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
    "model": {"type": "BPE", "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3, "abb": 4}, "merges": ["a b", ["ab", "b"]]}})");
  return file;
}

// The error's message; a test fails when there is none or it is more than one line.
std::string error_of(const Json& file) {
  try {
    (void)Tokenizer::parse(file.dump(), "t.json");
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_TRUE(message.starts_with("t.json")) << message;
    return message;
  }
  ADD_FAILURE() << "accepted " << file.dump();
  return {};
}

std::string error_with(const std::string& pointer, const Json& value) {
  Json file = valid_file();
  file[Json::json_pointer(pointer)] = value;
  return error_of(file);
}

TEST(TokenizerFile, ReadsWhatIsValid) {
  const Tokenizer tokenizer = Tokenizer::parse(valid_file().dump(), "t.json");
  EXPECT_EQ(tokenizer.encode("abb<s>abab"), (std::vector<TokenId>{4, 0, 3, 3}));
  EXPECT_EQ(tokenizer.vocab_size(), 6);
  EXPECT_EQ(tokenizer.token_to_id("new"), 5);
  EXPECT_EQ(tokenizer.token_to_id("zzz"), std::nullopt);
  EXPECT_EQ(tokenizer.id_to_token(3), "ab");
  EXPECT_TRUE(tokenizer.is_special(0) && !tokenizer.is_special(5) && !tokenizer.is_special(1));
  EXPECT_EQ(tokenizer.decode(std::vector<TokenId>{0, 1, 2}), "a b");
  EXPECT_EQ(tokenizer.decode(std::vector<TokenId>{0, 1, 2}, false), "<s> a b");
  EXPECT_THROW((void)tokenizer.decode(std::vector<TokenId>{6}), Error);
  EXPECT_THROW((void)tokenizer.id_to_token(-1), Error);
  EXPECT_THROW((void)tokenizer.encode("a\xFF"), Error);
}

TEST(TokenizerFile, NamesUnknownTypes) {
  for (const char* part : {"normalizer", "pre_tokenizer", "post_processor", "decoder"}) {
    const std::string message = error_with(std::string("/") + part, {{"type", "Zorp"}});
    EXPECT_NE(message.find("Zorp"), std::string::npos) << message;
    EXPECT_NE(message.find(part), std::string::npos) << message;
  }
  EXPECT_NE(error_with("/model/type", "Unigram").find("Unigram"), std::string::npos);
  EXPECT_NE(error_with("/normalizer", {{"type", "Sequence"}, {"normalizers", {{{"type", "Bert"}}}}}).find("Bert"),
            std::string::npos);
  EXPECT_NE(error_with("/pre_tokenizer", {{"type", "Split"}, {"pattern", {{"String", "a"}}}, {"behavior", "Odd"}})
                .find("Odd"),
            std::string::npos);
  EXPECT_NE(error_with("/version", "2.0").find("2.0"), std::string::npos);
}

TEST(TokenizerFile, RefusesWrongShapes) {
  const Json wrong[] = {1, "x", true, Json::array({1}), Json::object(), nullptr};
  // Every field of the file in turn gets values of other types: whatever is not valid ends in an Error.
  const std::vector<std::string> fields = {"/version",
                                           "/added_tokens",
                                           "/added_tokens/0",
                                           "/added_tokens/0/content",
                                           "/added_tokens/0/special",
                                           "/normalizer",
                                           "/pre_tokenizer",
                                           "/post_processor",
                                           "/decoder",
                                           "/model",
                                           "/model/vocab",
                                           "/model/vocab/a",
                                           "/model/merges",
                                           "/model/merges/0",
                                           "/model/merges/1",
                                           "/model/merges/1/0",
                                           "/model/unk_token",
                                           "/model/fuse_unk",
                                           "/model/byte_fallback",
                                           "/model/dropout",
                                           "/model/ignore_merges",
                                           "/model/continuing_subword_prefix"};
  int refused = 0;
  for (const std::string& field : fields) {
    for (const Json& value : wrong) {
      Json file = valid_file();
      file[Json::json_pointer(field)] = value;
      try {
        (void)Tokenizer::parse(file.dump(), "t.json");
      } catch (const Error& error) {
        ++refused;
        EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
      }
    }
  }
  EXPECT_GT(refused, 80);
  for (const char* missing : {"model"}) {
    Json file = valid_file();
    file.erase(missing);
    EXPECT_NE(error_of(file).find(missing), std::string::npos);
  }
  for (const char* missing : {"vocab", "merges"}) {
    Json file = valid_file();
    file["model"].erase(missing);
    EXPECT_NE(error_of(file).find(missing), std::string::npos);
  }
  for (const char* text : {"", "[]", "3", "null", "{", "{}", "\"x\"", "{\"model\":{\"type\":\"BPE\"", "\xFF"}) {
    EXPECT_THROW((void)Tokenizer::parse(text, "t.json"), Error) << text;
  }
}

TEST(TokenizerFile, RefusesWrongModels) {
  EXPECT_NE(error_with("/model/vocab/a", -1).find("\"a\""), std::string::npos);
  EXPECT_NE(error_with("/model/vocab/a", 2).find("id 2"), std::string::npos);
  EXPECT_NE(error_with("/model/vocab/a", int64_t{1} << 40).find("\"a\""), std::string::npos);
  EXPECT_NE(error_with("/model/vocab/a", 1'999'999'999).find("\"a\""), std::string::npos);
  EXPECT_NE(error_with("/model/vocab/a", 1.5).find("\"a\""), std::string::npos);
  EXPECT_NE(error_with("/model/merges/0", "a z").find("\"z\""), std::string::npos);
  EXPECT_NE(error_with("/model/merges/0", "b a").find("\"ba\""), std::string::npos);
  EXPECT_NE(error_with("/model/merges/0", "ab").find("merge 0"), std::string::npos);
  EXPECT_NE(error_with("/model/merges/0", "a b c").find("merge 0"), std::string::npos);
  EXPECT_NE(error_with("/model/merges/0", Json::array({"a"})).find("merge 0"), std::string::npos);
  EXPECT_NE(error_with("/model/unk_token", "<unk>").find("<unk>"), std::string::npos);
  EXPECT_NE(error_with("/model/dropout", 0.1).find("dropout"), std::string::npos);
  EXPECT_NE(error_with("/model/continuing_subword_prefix", "####").find("merge 0"), std::string::npos);
}

TEST(TokenizerFile, RefusesWrongParts) {
  const auto regex = [](const char* pattern) -> Json {
    return {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
  };
  EXPECT_NE(error_with("/pre_tokenizer", regex("(a")).find("(a"), std::string::npos);
  EXPECT_NE(error_with("/pre_tokenizer", regex("[a&&b]")).find("&&"), std::string::npos);
  (void)error_with("/pre_tokenizer", {{"type", "Split"}, {"pattern", "x"}, {"behavior", "Isolated"}});
  (void)error_with("/pre_tokenizer", {{"type", "Split"}, {"pattern", {{"String", ""}}}, {"behavior", "Isolated"}});
  (void)error_with("/pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "ab"}});
  (void)error_with("/pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "_"}, {"prepend_scheme", "odd"}});
  (void)error_with("/pre_tokenizer", {{"type", "Sequence"}});
  (void)error_with("/pre_tokenizer", {{"type", "ByteLevel"}, {"use_regex", 1}});
  (void)error_with("/normalizer", {{"type", "Prepend"}});
  (void)error_with("/normalizer", {{"type", "Replace"}, {"pattern", {{"Regex", "*"}}}, {"content", ""}});
  (void)error_with("/decoder", {{"type", "Strip"}, {"content", " "}, {"start", -1}, {"stop", 0}});
  (void)error_with("/decoder", {{"type", "Strip"}, {"content", ""}, {"start", 1}, {"stop", 0}});
  const Json a = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}, s = {{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}};
  const auto post = [](const Json& single, int64_t id) -> Json {
    return {{"type", "TemplateProcessing"}, {"single", single}, {"special_tokens", {{"<s>", {{"ids", {id}}}}}}};
  };
  EXPECT_EQ(Tokenizer::parse(
                [&] {
                  Json file = valid_file();
                  file["post_processor"] = post({s, a}, 0);
                  return file.dump();
                }(),
                "t.json")
                .encode("a"),
            (std::vector<TokenId>{0, 1}));
  (void)error_with("/post_processor", post({s, a, a}, 0));
  (void)error_with("/post_processor", post(Json::array({s}), 0));
  (void)error_with("/post_processor", post({s, a}, 77));
  (void)error_with("/post_processor", post({s, a}, -1));
  (void)error_with("/post_processor",
                   {{"type", "TemplateProcessing"}, {"single", {s, a}}, {"special_tokens", Json::object()}});
  (void)error_with("/post_processor", {{"type", "Sequence"}, {"processors", {post({s, a}, 0), post({s, a}, 0)}}});
  // Two added tokens that look alike once normalized.
  Json twins = valid_file();
  twins["normalizer"] = {{"type", "Lowercase"}};
  twins["added_tokens"] = {{{"id", 5}, {"content", "X"}}, {{"id", 6}, {"content", "x"}}};
  EXPECT_NE(error_of(twins).find("alike"), std::string::npos);
}

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "elapid-tokenizer-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  void write(const char* name, const std::string& text) const { std::ofstream(path_ / name) << text; }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

TEST(TokenizerFile, FollowsTokenizerConfig) {
  const TemporaryFolder folder;
  Json file = valid_file();
  file["post_processor"] = {{"type", "TemplateProcessing"},
                            {"single", {{{"SpecialToken", {{"id", "<s>"}}}}, {{"Sequence", {{"id", "A"}}}}}},
                            {"special_tokens", {{"<s>", {{"ids", {0}}}}}}};
  folder.write("tokenizer.json", file.dump());
  const auto ids = [&](const Json& config) {
    folder.write("tokenizer_config.json", config.dump());
    return Tokenizer::load(folder.path()).encode("ab");
  };
  using Ids = std::vector<TokenId>;
  EXPECT_EQ(Tokenizer::load(folder.path()).encode("ab"), (Ids{0, 3}));
  EXPECT_EQ(ids({{"bos_token", "<s>"}}), (Ids{0, 3})) << "without a flag the file's own post-processor counts";
  EXPECT_EQ(ids({{"bos_token", "<s>"}, {"add_bos_token", nullptr}}), (Ids{0, 3}));
  EXPECT_EQ(ids({{"bos_token", "<s>"}, {"add_bos_token", true}}), (Ids{0, 3})) << "once, not twice";
  EXPECT_EQ(ids({{"bos_token", "<s>"}, {"add_bos_token", false}}), (Ids{3}));
  EXPECT_EQ(ids({{"eos_token", {{"content", "new"}}}, {"add_eos_token", true}}), (Ids{3, 5}));
  EXPECT_EQ(ids({{"add_bos_token", true}, {"add_eos_token", true}, {"bos_token", nullptr}}), (Ids{3}));
  EXPECT_THROW((void)ids({{"bos_token", "<zz>"}, {"add_bos_token", true}}), Error);
  EXPECT_THROW((void)ids({{"bos_token", "<s>"}, {"add_bos_token", "yes"}}), Error);
  EXPECT_THROW((void)ids(Json::array()), Error);
  folder.write("tokenizer_config.json", "not JSON");
  EXPECT_THROW((void)Tokenizer::load(folder.path()), Error);
}

TEST(TokenizerFile, LoadsAFolderOrTheFile) {
  const TemporaryFolder folder;
  EXPECT_THROW((void)Tokenizer::load(folder.path()), Error);
  EXPECT_THROW((void)Tokenizer::load(folder.path() / "none.json"), Error);
  folder.write("other.json", valid_file().dump());
  EXPECT_EQ(Tokenizer::load(folder.path() / "other.json").encode("ab"), std::vector<TokenId>{3});
}

TEST(TokenizerFile, EncodesFromManyThreads) {
  const Tokenizer tokenizer = golden_tokenizer("Llama 2"), other = golden_tokenizer("NFC");
  std::mt19937 random(9);
  const std::string text = random_text(random, 3000);
  const std::vector<TokenId> expected = tokenizer.encode(text), of_other = other.encode(text);
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (size_t i = 0; i < wrong.size(); ++i) {
    threads.emplace_back([&, i] {
      for (int round = 0; round < 5; ++round) {
        wrong[i] += tokenizer.encode(text) != expected;
        wrong[i] += other.encode(text) != of_other;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

}  // namespace
}  // namespace elapid::test
