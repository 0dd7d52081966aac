#include "elapid/text/unicode.h"

#include "tests/text/support.h"

#include <gtest/gtest.h>

namespace elapid::unicode {
namespace {

std::string normalized(NormalForm form, std::string_view text) {
  std::string out;
  append_normalized(form, text, out);
  return out;
}

TEST(Unicode, Utf8Steps) {
  const auto step = [](std::string_view bytes) { return std::pair(utf8_step(bytes).kind, utf8_step(bytes).length); };
  EXPECT_EQ(step("a"), std::pair(Utf8Step::valid, 1));
  EXPECT_EQ(step("\u00e9x"), std::pair(Utf8Step::valid, 2));
  EXPECT_EQ(step("\U0010FFFF"), std::pair(Utf8Step::valid, 4));
  EXPECT_EQ(step("\xF4\x90\x80\x80"), std::pair(Utf8Step::invalid, 1));
  EXPECT_EQ(step("\xED\xA0\x80"), std::pair(Utf8Step::invalid, 1));
  EXPECT_EQ(step("\xC0\x80"), std::pair(Utf8Step::invalid, 1));
  EXPECT_EQ(step("\xE4\xBD\x41"), std::pair(Utf8Step::invalid, 2));
  EXPECT_EQ(step("\xE4\xBD"), std::pair(Utf8Step::incomplete, 2));
  EXPECT_EQ(step(""), std::pair(Utf8Step::incomplete, 0));
}

TEST(Unicode, EveryCodePointSurvivesEncoding) {
  for (char32_t code = 0; code < kEnd; ++code) {
    if (code - 0xD800 < 0x800) continue;
    std::string text;
    append(text, code);
    ASSERT_EQ(valid_utf8_prefix(text), text.size());
    ASSERT_EQ(decode(text.data()).code, code);
    ASSERT_EQ(static_cast<size_t>(decode(text.data()).length), text.size());
    ASSERT_EQ(last_character("a" + text), 1u);
  }
}

TEST(Unicode, LossyDecodingDoesNotDependOnTheCuts) {
  std::mt19937 random(1);
  for (int i = 0; i < 500; ++i) {
    std::string bytes = elapid::test::random_text(random, 8);
    for (int j = 0; j < 6 && !bytes.empty(); ++j) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    LossyDecoder whole, parts;
    std::string expected, text;
    whole.push(bytes, expected);
    whole.finish(expected);
    for (const char byte : bytes) parts.push(std::string_view(&byte, 1), text);
    parts.finish(text);
    ASSERT_EQ(text, expected);
    ASSERT_EQ(valid_utf8_prefix(text), text.size());
  }
}

TEST(Unicode, NormalForms) {
  EXPECT_EQ(normalized(NormalForm::nfc, "e\u0301 A\u030a \u212b \u1e9b\u0323"), "\u00e9 \u00c5 \u00c5 \u1e9b\u0323");
  EXPECT_EQ(normalized(NormalForm::nfd, "\u00e9\u1e69\uac01"), "e\u0301s\u0323\u0307\u1100\u1161\u11a8");
  EXPECT_EQ(normalized(NormalForm::nfkc, "\ufb01\u2460\u1e9b\u0323"), "fi1\u1e69");
  EXPECT_EQ(normalized(NormalForm::nfkd, "\ufdfa").size(), 33u);
  EXPECT_EQ(normalized(NormalForm::nfc, "\u1100\u1161\u11a8\u11a7"), "\uac01\u11a7");
  EXPECT_EQ(normalized(NormalForm::nfc, "a\u0315\u0300\u05ae\u0300b"), "\u00e0\u05ae\u0300\u0315b");
  EXPECT_EQ(normalized(NormalForm::nfc, "\u0344\u0958"), "\u0308\u0301\u0915\u093c");
  EXPECT_EQ(normalized(NormalForm::nfkc, "\u32ff"), "\u32ff") << "newer than the package's data";
}

TEST(Unicode, NormalFormsAreStable) {
  for (char32_t code = 0; code < 0x33000; ++code) {
    if (code - 0xD800 < 0x800) continue;
    std::string text;
    append(text, code);
    for (const NormalForm form : {NormalForm::nfc, NormalForm::nfd, NormalForm::nfkc, NormalForm::nfkd}) {
      const std::string once = normalized(form, text);
      ASSERT_EQ(normalized(form, once), once) << std::hex << static_cast<uint32_t>(code);
      ASSERT_TRUE(!is_stable(form, code) || once == text) << std::hex << static_cast<uint32_t>(code);
    }
    ASSERT_EQ(normalized(NormalForm::nfc, normalized(NormalForm::nfd, text)), normalized(NormalForm::nfc, text));
    ASSERT_EQ(normalized(NormalForm::nfd, normalized(NormalForm::nfc, text)), normalized(NormalForm::nfd, text));
  }
}

TEST(Unicode, ClassesOfTheReference) {
  EXPECT_EQ(category(0x16100), Category::Lo);
  EXPECT_EQ(category(0x1171E), Category::Mc);
  EXPECT_EQ(category(0xE000), Category::Co);
  EXPECT_EQ(category(0x10FFFF), Category::Cn);
  EXPECT_TRUE(in_class(Category::Lu, "L") && in_class(Category::Lu, "Lu") && !in_class(Category::Ll, "Lu"));
  EXPECT_TRUE(is_class_name("Nd") && is_class_name("P") && !is_class_name("X") && !is_class_name("uL"));
  EXPECT_TRUE(is_word('_') && is_word(0x24B6) && is_word(0x200D) && !is_word(0xB2) && !is_word('-'));
  EXPECT_TRUE(is_alphanumeric(0x301) && !is_alphanumeric(0x200D));
  EXPECT_TRUE(is_numeric(0xBD) && is_numeric(0x2167) && is_numeric(0x11DE0) && !is_numeric('a'));
  EXPECT_TRUE(is_punctuation('$') && is_punctuation(0x2026) && !is_punctuation(0x2E52) && !is_punctuation(0x20AC));
  EXPECT_TRUE(is_space(0x85) && is_space(0x3000) && !is_space(0x200B) && !is_space(0x180E));
}

TEST(Unicode, LowerCase) {
  const auto lower = [](char32_t code) {
    std::string text;
    append_lower(text, code);
    return text;
  };
  EXPECT_EQ(lower('A'), "a");
  EXPECT_EQ(lower(0x130), "i\u0307");
  EXPECT_EQ(lower(0x3A3), "\u03c3");
  EXPECT_EQ(lower(0xA7CB), "\u0264");
  EXPECT_EQ(lower(0x10D50), "\U00010D70");
  EXPECT_EQ(lower(0x16EA0), "\U00016EBB");
}

}  // namespace
}  // namespace elapid::unicode
