#include "elapid/core/isa.h"

#include "elapid/core/error.h"

#include <cstdio>
#include <gtest/gtest.h>
#include <string>

namespace elapid {
namespace {

struct Printed {
  std::string text;
  bool failed;
};

// What a process with this ELAPID_FORCE_ISA says; unset when null.
Printed active_isa_under(const char* forced) {
  std::string command = "env -u ELAPID_FORCE_ISA ";
  if (forced != nullptr) command += std::string("ELAPID_FORCE_ISA='") + forced + "' ";
  FILE* pipe = popen((command + "'" ELAPID_ACTIVE_ISA "'").c_str(), "r");
  if (pipe == nullptr) return {"", true};
  std::string text;
  for (int c = std::fgetc(pipe); c != EOF; c = std::fgetc(pipe)) text += static_cast<char>(c);
  const bool failed = pclose(pipe) != 0;
  if (!text.empty() && text.back() == '\n') text.pop_back();
  return {text, failed};
}

TEST(Isa, BaselineIsAlwaysAvailableAndLevelsAscend) {
  const std::span<const Isa> isas = available_isas();
  ASSERT_FALSE(isas.empty());
  EXPECT_EQ(isas.front(), Isa::baseline);
  for (size_t i = 1; i < isas.size(); ++i) EXPECT_LT(isas[i - 1], isas[i]);
}

TEST(Isa, TheHighestIsUsedUnlessForced) {
  const std::string highest(name_of(available_isas().back()));
  for (const char* unforced : {static_cast<const char*>(nullptr), ""}) {
    const Printed printed = active_isa_under(unforced);
    EXPECT_FALSE(printed.failed);
    EXPECT_EQ(printed.text, highest);
  }
  for (const Isa isa : available_isas()) {
    const Printed printed = active_isa_under(std::string(name_of(isa)).c_str());
    EXPECT_FALSE(printed.failed);
    EXPECT_EQ(printed.text, name_of(isa));
  }
}

TEST(Isa, AnUnknownLevelIsAnErrorThatListsWhatThereIs) {
  for (const char* unknown : {"avx9000", "AVX2", " baseline"}) {
    const Printed printed = active_isa_under(unknown);
    EXPECT_TRUE(printed.failed);
    EXPECT_NE(printed.text.find("ELAPID_FORCE_ISA"), std::string::npos) << printed.text;
    EXPECT_NE(printed.text.find(unknown), std::string::npos) << printed.text;
    EXPECT_NE(printed.text.find("baseline"), std::string::npos) << printed.text;
  }
}

TEST(Isa, ALevelAboveTheMachineIsAnError) {
  for (const Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512, Isa::amx}) {
    if (isa <= available_isas().back()) continue;
    EXPECT_TRUE(active_isa_under(std::string(name_of(isa)).c_str()).failed);
    EXPECT_THROW(set_active_isa(isa), Error);
  }
  const Isa before = active_isa();
  for (const Isa isa : available_isas()) {
    set_active_isa(isa);
    EXPECT_EQ(active_isa(), isa);
  }
  set_active_isa(before);
}

}  // namespace
}  // namespace elapid
