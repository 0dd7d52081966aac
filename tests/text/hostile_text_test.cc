#include "elapid/text/tokenizer.h"
#include "tests/text/support.h"

#include <algorithm>
#include <ctime>
#include <gtest/gtest.h>

namespace elapid::test {
namespace {

struct Hostile {
  const char* name;
  const char* unit;
};

constexpr Hostile kHostile[] = {
    {"spaces", " "},
    {"letters", "a"},
    {"apostrophes", "'"},
    {"newlines", "\n"},
    {"marks", "a\u0301"},
    {"only_marks", "\u0301"},
    {"unordered_marks", "\u0301\u0323"},
    {"digits", "7"},
    {"ideographs", "\u4e2d"},
    {"emoji", "\U0001F468\u200d"},
    {"spaced", " a"},
    {"added_tokens", "<s>"},
    {"near_tokens", "<new"},
    {"capitals", "A"},
    {"mixed_spaces", " \t"},
    {"metaspaces", "\u2581"},
    {"jamo", "\u1100\u1161"},
};

std::string repeated(const char* unit, size_t size) {
  std::string text;
  const std::string_view view(unit);
  while (text.size() + view.size() <= size) text += view;
  return text;
}

// The processor time of this thread: other work on the machine does not count.
double thread_seconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

template <class Work>
double seconds_of(const Work& work) {
  const double begin = thread_seconds();
  work();
  return thread_seconds() - begin;
}

// Ten times the text may take 10 times as long, times a logarithm and the loss of the caches; a quadratic step anywhere
// would make it 100. Times below this are noise.
constexpr double kMostTimes = 40, kNoise = 2e-3;

template <class Encode>
void expect_linear(const Encode& encode, const char* unit, size_t size, std::string_view name) {
  const std::string large = repeated(unit, size), small = repeated(unit, size / 10);
  double times = 0;
  for (int attempt = 0; attempt < 3; ++attempt) {
    const double of_small = seconds_of([&] { encode(small); });
    times = seconds_of([&] { encode(large); }) / std::max(of_small, kNoise);
    if (times < kMostTimes) return;
  }
  ADD_FAILURE() << name << ": ten times the text takes " << times << " times as long";
}

class HostileText : public testing::TestWithParam<Hostile> {};

TEST_P(HostileText, TakesLinearTime) {
  for (const std::string_view name :
       {"byte-level", "NFC", "Split Llama 3", "Split GPT-4o", "Llama 2", "added stripping both", "added overlapping",
        "added with NFC", "Metaspace always True"}) {
    const Tokenizer tokenizer = golden_tokenizer(name);
    const auto encode = [&](std::string_view text) { EXPECT_FALSE(tokenizer.encode(text).empty()); };
    expect_linear(encode, GetParam().unit, size_t{1} << 20, name);
  }
}

TEST_P(HostileText, StreamsInLinearTime) {
  for (const std::string_view name : {"byte-level", "NFC", "Split Llama 3", "Llama 2", "added stripping both"}) {
    const Tokenizer tokenizer = golden_tokenizer(name);
    const auto encode = [&](std::string_view text) {
      std::vector<TokenId> ids;
      EncodeStream encoder(tokenizer);
      for (size_t at = 0; at < text.size(); at += 61) encoder.push(text.substr(at, 61), ids);
      encoder.finish(ids);
      EXPECT_FALSE(ids.empty());
    };
    expect_linear(encode, GetParam().unit, size_t{1} << 19, name);
    const std::string text = repeated(GetParam().unit, 20'000);
    std::vector<TokenId> ids;
    EncodeStream encoder(tokenizer);
    for (size_t at = 0; at < text.size(); at += 61) encoder.push(std::string_view(text).substr(at, 61), ids);
    encoder.finish(ids);
    EXPECT_EQ(ids, tokenizer.encode(text)) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Texts, HostileText, testing::ValuesIn(kHostile),
                         [](const auto& of) { return std::string(of.param.name); });

}  // namespace
}  // namespace elapid::test
