#pragma once

// What the tests of this folder share: a scratch folder, a check of an error's text, and safetensors files as text.

#include "elapid/core/error.h"
#include "elapid/core/tensor.h"

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <initializer_list>
#include <stdlib.h>
#include <string>
#include <string_view>

namespace elapid {

// A folder of its own for every test, removed with all its contents.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "elapid-io-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp: cannot make " + pattern);
    path_ = pattern;
  }
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }

  std::filesystem::path write(std::string_view name, std::string_view contents) const {
    std::ofstream(path_ / name, std::ios::binary).write(contents.data(), std::ssize(contents));
    return path_ / name;
  }

  [[nodiscard]] int64_t count_entries() const {
    return std::distance(std::filesystem::directory_iterator(path_), std::filesystem::directory_iterator());
  }

 private:
  std::filesystem::path path_;
};

// `action` must throw an Error whose message is one line of reasonable length that contains all the parts.
template <class Action>
void expect_error(Action action, std::initializer_list<std::string_view> parts) {
  try {
    action();
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_LT(message.size(), 1000) << message;
    for (const std::string_view part : parts) {
      EXPECT_NE(message.find(part), std::string::npos) << "no '" << part << "' in: " << message;
    }
    return;
  }
  ADD_FAILURE() << "no Error where one with '" << (parts.size() > 0 ? *parts.begin() : "") << "' was expected";
}

// A safetensors file with this header and `data_size` bytes of data, 0, 1, 2, …
inline std::string file_with(std::string_view header, size_t data_size) {
  const uint64_t length = header.size();
  std::string bytes(reinterpret_cast<const char*>(&length), sizeof(length));
  bytes += header;
  for (size_t i = 0; i < data_size; ++i) bytes += static_cast<char>(i);
  return bytes;
}

// An entry of its header: "name":{…}
inline std::string entry(std::string_view name, std::string_view dtype, std::string_view shape, int64_t begin,
                         int64_t end) {
  return concat('"', name, R"(":{"dtype":")", dtype, R"(","shape":)", shape, R"(,"data_offsets":[)", begin, ',', end,
                "]}");
}

inline std::string contents_of(const Tensor& tensor) {
  return {static_cast<const char*>(tensor.data), static_cast<size_t>(tensor.bytes())};
}

}  // namespace elapid
