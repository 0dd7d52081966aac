#pragma once

// What the commands read besides models.

#include "elapid/core/batch.h"

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace elapid::cli {

// A text in pieces, in order: a regular file's, or standard input's when `path` is empty.
class TextReader {
 public:
  explicit TextReader(const std::optional<std::string>& path);
  ~TextReader();
  TextReader(const TextReader&) = delete;
  TextReader& operator=(const TextReader&) = delete;

  // The next piece, valid until the next call; empty at the end.
  std::string_view next();
  [[nodiscard]] int64_t size() const { return size_; }  // of the file, 0 when unknown
  [[nodiscard]] int64_t position() const { return position_; }

 private:
  std::string name_;
  int fd_;
  int64_t size_ = 0, position_ = 0;
  std::vector<char> piece_;
};

// All of it; standard input when `path` is empty.
std::string read_text(const std::optional<std::string>& path);

// Ids separated by spaces, line ends or commas; `what` names them in errors.
std::vector<TokenId> parse_ids(std::string_view text, const std::string& what);
// "1 2 3"
std::string join(const std::vector<TokenId>& ids);

}  // namespace elapid::cli
