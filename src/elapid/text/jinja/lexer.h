#pragma once

// Template text → tokens, as Jinja's lexer makes them with trim_blocks and lstrip_blocks.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace elapid::jinja {

struct Token {
  enum class Kind : uint8_t {
    text,
    block_begin,
    block_end,
    print_begin,
    print_end,
    name,
    string,
    integer,
    real,
    symbol,
    end
  };

  Kind kind = Kind::end;
  int line = 1;
  std::string text{};  // of texts, names, symbols, and strings (unescaped)
  int64_t integer = 0;
  double real = 0;

  [[nodiscard]] bool is_symbol(std::string_view symbol) const { return kind == Kind::symbol && text == symbol; }
  [[nodiscard]] bool is_name(std::string_view name) const { return kind == Kind::name && text == name; }
};

// What is wrong with a template, and on which line.
struct SyntaxError {
  int line;
  std::string message;
};

// Ends with a token of kind end. Throws SyntaxError. The text must be valid UTF-8.
std::vector<Token> tokenize(std::string_view text);

}  // namespace elapid::jinja
