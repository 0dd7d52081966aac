#include "elapid/text/byte_level.h"

#include "elapid/text/unicode.h"

#include <array>
#include <string>

namespace elapid {
namespace {

struct ByteTable {
  std::array<std::string, 256> spelling;
  std::array<int, 512> byte;

  ByteTable() {
    byte.fill(-1);
    char32_t next = 256;
    for (int value = 0; value < 256; ++value) {
      const bool printable = (value >= '!' && value <= '~') || (value >= 0xA1 && value != 0xAD);
      const char32_t code = printable ? static_cast<char32_t>(value) : next++;
      unicode::append(spelling[static_cast<size_t>(value)], code);
      byte[code] = value;
    }
  }
};

const ByteTable& table() {
  static const ByteTable instance;
  return instance;
}

}  // namespace

std::string_view byte_spelling(unsigned char byte) { return table().spelling[byte]; }

int spelled_byte(char32_t code) { return code < table().byte.size() ? table().byte[code] : -1; }

}  // namespace elapid
