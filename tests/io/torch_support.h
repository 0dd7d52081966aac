#pragma once

// Pickles, zip archives and torch files written by hand, right or wrong.

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

namespace elapid {

template <class T>
std::string bytes_of_number(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

// ---- Pickle operations.

inline std::string pickled(std::string_view text) {
  return std::string("X") + bytes_of_number(static_cast<uint32_t>(text.size())) + std::string(text);
}
inline std::string pickled(int64_t value) { return std::string("\x8a\x08", 2) + bytes_of_number(value); }
inline std::string pickled_tuple(std::initializer_list<int64_t> values) {
  std::string text = "(";
  for (const int64_t value : values) text += pickled(value);
  return text + "t";
}
inline std::string pickled_global(std::string_view module, std::string_view name) {
  return std::string("c") + std::string(module) + "\n" + std::string(name) + "\n";
}
inline std::string pickled_storage(std::string_view key, std::string_view kind, int64_t count,
                                   const std::string& rest = "") {
  return std::string("(") + pickled("storage") + pickled_global("torch", std::string(kind) + "Storage") + pickled(key) +
         pickled("cpu") + pickled(count) + rest + "tQ";
}
inline std::string pickled_tensor(const std::string& storage, int64_t offset, std::initializer_list<int64_t> shape,
                                  std::initializer_list<int64_t> strides) {
  return pickled_global("torch._utils", "_rebuild_tensor_v2") + "(" + storage + pickled(offset) + pickled_tuple(shape) +
         pickled_tuple(strides) + "\x89}tR";
}
inline std::string pickle(const std::string& value) { return "\x80\x02" + value + "."; }
inline std::string pickled_dict(const std::string& keys_and_values) { return "}(" + keys_and_values + "u"; }

// ---- Zip archives.

struct ZipText {
  struct Member {
    std::string name, data;
    uint16_t method = 0, flags = 0x808;
    int64_t size = -1, begin = -1;  // what the directory says, where that is not the truth
    std::string local_name;         // the same for its own header
  };

  // The archive; with `zip64`, sizes and offsets of members are in their zip64 fields alone.
  [[nodiscard]] std::string str(bool zip64 = false) const {
    std::string out, directory;
    for (const Member& m : members) {
      const auto begin = m.begin >= 0 ? static_cast<uint64_t>(m.begin) : out.size();
      const auto size = m.size >= 0 ? static_cast<uint64_t>(m.size) : m.data.size();
      const std::string& name = m.local_name.empty() ? m.name : m.local_name;
      out += number<uint32_t>(0x04034b50) + number<uint16_t>(0) + number(m.flags) + number(m.method) +
             std::string(16, '\0') + number<uint16_t>(name.size()) + number<uint16_t>(0) + name + m.data;
      const std::string extra = zip64 ? number<uint16_t>(9) + number<uint16_t>(2) + "??" + number<uint16_t>(1) +
                                            number<uint16_t>(24) + number(size) + number(size) + number(begin)
                                      : "";
      const auto field = [&](uint64_t value) { return number<uint32_t>(zip64 ? 0xffffffffu : value); };
      directory += number<uint32_t>(0x02014b50) + number<uint32_t>(0) + number(m.flags) + number(m.method) +
                   std::string(8, '\0') + field(size) + field(size) + number<uint16_t>(m.name.size()) +
                   number<uint16_t>(extra.size()) + std::string(10, '\0') + field(begin) + m.name + extra;
    }
    const uint64_t count = count_said >= 0 ? static_cast<uint64_t>(count_said) : members.size();
    const uint64_t begin = out.size(), end = begin + directory.size();
    out += directory;
    if (zip64) {
      out += number<uint32_t>(0x06064b50) + number<uint64_t>(44) + std::string(12, '\0') + number(count) +
             number(count) + number<uint64_t>(directory.size()) + number(begin);
      out += number<uint32_t>(0x07064b50) + number<uint32_t>(0) + number(end) + number<uint32_t>(1);
    }
    return out + number<uint32_t>(0x06054b50) + number<uint32_t>(0) + number<uint16_t>(count) +
           number<uint16_t>(count) + number<uint32_t>(directory.size()) + number<uint32_t>(begin) +
           number<uint16_t>(comment.size()) + comment;
  }

  std::vector<Member> members;
  std::string comment;
  int64_t count_said = -1;

 private:
  template <class T>
  static std::string number(uint64_t value) {
    return bytes_of_number(static_cast<T>(value));
  }
  static std::string number(uint16_t value) { return bytes_of_number(value); }
  static std::string number(uint64_t value) { return bytes_of_number(value); }
};

// A file with this pickle and the storages "0", "1", ….
inline ZipText torch_zip(const std::string& pickle, const std::vector<std::string>& storages = {}) {
  ZipText zip;
  zip.members.push_back({"a/data.pkl", pickle, 0, 0x808, -1, -1, ""});
  for (size_t i = 0; i < storages.size(); ++i) {
    zip.members.push_back({"a/data/" + std::to_string(i), storages[i], 0, 0x808, -1, -1, ""});
  }
  return zip;
}

// The same in the format before torch 1.6; `rest` replaces the storages.
inline std::string torch_legacy(const std::string& pickle, const std::string& keys, const std::string& rest) {
  return std::string("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.", 21) +
         elapid::pickle(pickled_dict(pickled("little_endian") + "\x88")) + pickle + keys + rest;
}

}  // namespace elapid
