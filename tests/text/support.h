#pragma once

// The tokenizers of tests/data/tokenizer with what the `tokenizers` package makes of some texts (see
// tools/make_tokenizer_goldens.py), and texts to try things on.

#include "elapid/io/file.h"
#include "elapid/io/json.h"
#include "elapid/text/tokenizer.h"
#include "elapid/text/unicode.h"

#include <cstdint>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace elapid::test {

struct GoldenCase {
  std::string name;
  Json file;                                             // a whole tokenizer file
  std::vector<std::optional<std::vector<TokenId>>> ids;  // of texts(); nothing where the package fails
  Json golden;
};

inline const Json& golden_file() {
  static const std::string path = std::string(ELAPID_SOURCE_DIR) + "/tests/data/tokenizer/cases.json";
  static const Json json = parse_json(read_text_file(path), path);
  return json;
}

inline const std::vector<std::string>& golden_texts() {
  static const auto texts = golden_file().at("texts").get<std::vector<std::string>>();
  return texts;
}

inline const std::vector<GoldenCase>& golden_cases() {
  static const std::vector<GoldenCase> cases = [] {
    const std::string path = std::string(ELAPID_SOURCE_DIR) + "/tests/data/tokenizer/models.json";
    const Json models = parse_json(read_text_file(path), path);
    std::vector<GoldenCase> all;
    for (const Json& golden : golden_file().at("cases")) {
      GoldenCase next{golden.at("name").get<std::string>(), golden.at("file"), {}, golden};
      next.file["model"] = models.at(golden.at("model").get<std::string>());
      for (const Json& ids : golden.at("ids")) {
        next.ids.push_back(ids.is_null() ? std::nullopt : std::optional(ids.get<std::vector<TokenId>>()));
      }
      all.push_back(std::move(next));
    }
    return all;
  }();
  return cases;
}

inline Tokenizer golden_tokenizer(const GoldenCase& of) { return Tokenizer::parse(of.file.dump(), of.name); }

inline Tokenizer golden_tokenizer(std::string_view name) {
  for (const GoldenCase& each : golden_cases()) {
    if (each.name == name) return golden_tokenizer(each);
  }
  throw std::out_of_range("no tokenizer case " + std::string(name));
}

// Random text of many kinds, the same for the same generator.
inline std::string random_text(std::mt19937& random, int64_t parts) {
  static const std::vector<std::string> phrases = {"It's",
                                                   "we'll",
                                                   "'re",
                                                   "'S",
                                                   "don\u2019t",
                                                   "e\u0301",
                                                   "a\u0323\u0307",
                                                   "\u1100\u1161\u11a8",
                                                   "\u212b",
                                                   "\ufb01",
                                                   "\U0001F468\u200d\U0001F469\u200d\U0001F467",
                                                   "\u2764\ufe0f",
                                                   "\u0915\u094d\u0937\u093f",
                                                   "\u4f60\u597d",
                                                   "\uac00",
                                                   "12345",
                                                   "3.14",
                                                   "\u00bd",
                                                   "<|endoftext|>",
                                                   "<s>",
                                                   " <mask> ",
                                                   "TOKEN",
                                                   "tokenizer",
                                                   "[INST]",
                                                   "</s>",
                                                   "<new",
                                                   "<ab",
                                                   "  ",
                                                   "       ",
                                                   "\n",
                                                   "\n\n",
                                                   "\r\n",
                                                   "\t\t",
                                                   "\u00a0",
                                                   "\u3000",
                                                   "\u0085",
                                                   "\ufeff",
                                                   std::string(1, '\0'),
                                                   "\x1b",
                                                   "...",
                                                   "--",
                                                   "(a)",
                                                   "a_b",
                                                   " the",
                                                   " and",
                                                   "aaaa",
                                                   "\u2581",
                                                   "E\u0301tude",
                                                   "Hello",
                                                   " quick",
                                                   "x",
                                                   "e",
                                                   "."};
  const auto below = [&random](size_t bound) { return std::uniform_int_distribution<size_t>(0, bound - 1)(random); };
  std::string text;
  for (int64_t i = 0; i < parts; ++i) {
    switch (below(5)) {
      case 0: {
        char32_t code = static_cast<char32_t>(below(below(2) == 0 ? 0x500 : 0x32000));
        if (code - 0xD800 < 0x800) code -= 0xD800;
        unicode::append(text, code);
        break;
      }
      case 1: text.append(below(12), " \n'a7.\xC3"[below(6)]); break;
      default: text += phrases[below(phrases.size())];
    }
  }
  return text;
}

}  // namespace elapid::test
