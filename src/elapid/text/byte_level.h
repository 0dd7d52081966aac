#pragma once

// Byte-level vocabularies spell every byte as one printable character: '!' is '!', a space is 'Ġ'.

#include <cstdint>
#include <string_view>

namespace elapid {

// The character that stands for a byte, as UTF-8.
[[nodiscard]] std::string_view byte_spelling(unsigned char byte);

// The byte that a character stands for, or -1.
[[nodiscard]] int spelled_byte(char32_t code);

}  // namespace elapid
