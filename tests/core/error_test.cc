#include "elapid/core/error.h"

#include <gtest/gtest.h>
#include <string_view>

namespace elapid {
namespace {

TEST(Error, RequireThrowsItsPartsAndTheCallersLine) {
  EXPECT_NO_THROW(require(true, "never built"));
  int line = 0;
  try {
    line = __LINE__ + 1;
    require(1 > 2, "op: columns must be ", 3, ", got ", int64_t{4}, " for ", std::string("name"), '!');
    FAIL() << "must throw";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "op: columns must be 3, got 4 for name!");
    EXPECT_EQ(error.where().line, line);
    EXPECT_NE(std::string_view(error.where().file).find("error_test.cc"), std::string_view::npos);
  }
}

TEST(Error, FailThrowsItsMessageAndTheCallersLine) {
  int line = 0;
  try {
    line = __LINE__ + 1;
    fail("op: no such thing");
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "op: no such thing");
    EXPECT_EQ(dynamic_cast<const Error&>(error).where().line, line);
  }
}

TEST(Error, ConditionsAreWhateverConvertsToBool) {
  int x = 0;
  EXPECT_NO_THROW(require(&x, "a pointer"));
  EXPECT_THROW(require(static_cast<int*>(nullptr), "a null pointer"), Error);
  EXPECT_EQ(concat("a", 1, 'b', 2.5), "a1b2.5");
}

}  // namespace
}  // namespace elapid
