#include "elapid/text/tokenizer.h"
#include "tests/text/support.h"

#include <gtest/gtest.h>

namespace elapid::test {
namespace {

class Golden : public testing::TestWithParam<size_t> {
 protected:
  const GoldenCase& golden() const { return golden_cases()[GetParam()]; }
};

TEST_P(Golden, EncodesAsThePackage) {
  const Tokenizer tokenizer = golden_tokenizer(golden());
  for (size_t i = 0; i < golden_texts().size(); ++i) {
    if (!golden().ids[i]) continue;
    EXPECT_EQ(tokenizer.encode(golden_texts()[i]), *golden().ids[i]) << golden_texts()[i];
  }
  const auto plain = golden().golden.at("without_special").get<std::vector<TokenId>>();
  EXPECT_EQ(tokenizer.encode(golden_texts()[2], {.add_special_tokens = false}), plain);
}

TEST_P(Golden, NamesTokensAsThePackage) {
  const Tokenizer tokenizer = golden_tokenizer(golden());
  const auto expected = golden().golden.at("tokens").get<std::vector<std::string>>();
  std::vector<std::string> tokens;
  for (const TokenId id : golden().ids[5].value()) tokens.emplace_back(tokenizer.id_to_token(id));
  EXPECT_EQ(tokens, expected);
  for (const std::string& token : tokens) EXPECT_EQ(tokenizer.id_to_token(tokenizer.token_to_id(token).value()), token);
}

TEST_P(Golden, DecodesAsThePackage) {
  const Tokenizer tokenizer = golden_tokenizer(golden());
  const Json& decoded = golden().golden.at("decoded");
  for (size_t i = 0; i < golden_texts().size(); ++i) {
    if (!golden().ids[i] || decoded[i].is_null()) continue;
    const std::string expected = decoded[i].is_boolean() ? golden_texts()[i] : decoded[i].get<std::string>();
    EXPECT_EQ(tokenizer.decode(*golden().ids[i]), expected);
  }
  if (golden().ids[17]) {
    EXPECT_EQ(tokenizer.decode(*golden().ids[17], false), golden().golden.at("decoded_all").get<std::string>());
  }
  for (const Json& each : golden().golden.at("decodes")) {
    EXPECT_EQ(tokenizer.decode(each.at("ids").get<std::vector<TokenId>>()), each.at("text").get<std::string>());
  }
}

std::string test_name(const testing::TestParamInfo<size_t>& info) {
  std::string name = golden_cases()[info.param].name;
  for (char& c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  }
  return name;
}

INSTANTIATE_TEST_SUITE_P(Cases, Golden, testing::Range(size_t{0}, golden_cases().size()), test_name);

TEST(Golden, CoversManyCases) { EXPECT_GE(golden_cases().size(), 80u); }

}  // namespace
}  // namespace elapid::test
