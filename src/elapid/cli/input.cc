#include "elapid/cli/input.h"

#include "elapid/core/error.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace elapid::cli {
namespace {

constexpr size_t kPiece = size_t{64} << 10;
constexpr std::string_view kSeparators = " \t\r\n,";

}  // namespace

TextReader::TextReader(const std::optional<std::string>& path)
    : name_(path.value_or("standard input")), fd_(STDIN_FILENO), piece_(kPiece) {
  if (!path) return;
  fd_ = ::open(path->c_str(), O_RDONLY | O_CLOEXEC);
  require(fd_ >= 0, name_, ": must be a readable file, got ", std::strerror(errno));
  struct stat info {};
  if (fstat(fd_, &info) == 0 && S_ISREG(info.st_mode)) size_ = info.st_size;
}

TextReader::~TextReader() {
  if (fd_ != STDIN_FILENO) ::close(fd_);
}

std::string_view TextReader::next() {
  ssize_t count;
  do {
    count = ::read(fd_, piece_.data(), piece_.size());
  } while (count < 0 && errno == EINTR);
  require(count >= 0, name_, ": must be a readable file, got ", std::strerror(errno));
  position_ += count;
  return {piece_.data(), static_cast<size_t>(count)};
}

std::string read_text(const std::optional<std::string>& path) {
  TextReader reader(path);
  std::string text;
  for (std::string_view piece = reader.next(); !piece.empty(); piece = reader.next()) text += piece;
  return text;
}

std::vector<TokenId> parse_ids(std::string_view text, const std::string& what) {
  std::vector<TokenId> ids;
  for (;;) {
    text.remove_prefix(std::min(text.find_first_not_of(kSeparators), text.size()));
    if (text.empty()) return ids;
    const std::string_view word = text.substr(0, text.find_first_of(kSeparators));
    TokenId id = -1;
    const auto [stop, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    require(error == std::errc() && stop == word.data() + word.size() && id >= 0, what, ": must be token ids, got ",
            word.substr(0, 40));
    ids.push_back(id);
    text.remove_prefix(word.size());
  }
}

std::string join(const std::vector<TokenId>& ids) {
  std::string text;
  for (const TokenId id : ids) {
    if (!text.empty()) text += ' ';
    text += std::to_string(id);
  }
  return text;
}

}  // namespace elapid::cli
