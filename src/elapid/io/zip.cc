#include "elapid/io/zip.h"

#include "elapid/core/error.h"
#include "elapid/io/json.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <string_view>
#include <vector>

// The layout is that of PKWARE's APPNOTE.TXT, sections 4.3 and 4.5.3: for each member a local header and its data, then
// the central directory, the end record of zip64 and its locator, and the end record.

namespace elapid {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr uint32_t kLocalSignature = 0x04034b50, kCentralSignature = 0x02014b50, kEndSignature = 0x06054b50,
                   kEnd64Signature = 0x06064b50, kLocatorSignature = 0x07064b50;
constexpr uint64_t kLocalSize = 30, kCentralSize = 46, kEndSize = 22, kEnd64Size = 56, kLocatorSize = 20;
constexpr uint64_t kMaxComment = 65535;
constexpr uint16_t kZip64Extra = 1, kEncrypted = 1, kStored = 0;
// A field of this value is in the zip64 record instead.
constexpr uint16_t kElsewhere16 = std::numeric_limits<uint16_t>::max();
constexpr uint32_t kElsewhere32 = std::numeric_limits<uint32_t>::max();

struct Directory {
  uint64_t count, begin, end;
};

struct Member {
  std::string name;
  uint64_t begin, end;  // with its local header
};

class ZipReader {
 public:
  ZipReader(Bytes bytes, const std::string& what) : bytes_(bytes), what_(what) {}

  ZipMembers read() {
    const Directory directory = find_directory();
    ZipMembers members;
    std::vector<Member> spans;
    uint64_t at = directory.begin;
    for (uint64_t i = 0; i < directory.count; ++i) at = read_member(at, directory, members, spans);
    require(at == directory.end, what_, ": the zip directory's members must take its ", directory.end - directory.begin,
            " bytes, got ", at - directory.begin);
    std::ranges::sort(spans, {}, &Member::begin);
    for (size_t i = 1; i < spans.size(); ++i) {
      if (spans[i - 1].end <= spans[i].begin) continue;
      fail(concat(place_of(spans[i].name), ": must not overlap another, got ", quote(spans[i - 1].name),
                  " in the same bytes"));
    }
    return members;
  }

 private:
  [[nodiscard]] std::string place_of(std::string_view member) const {
    return concat(what_, ": zip member ", quote(member));
  }

  // Callers check bounds.
  template <class T>
  [[nodiscard]] T number_at(uint64_t at) const {
    T value{};
    std::memcpy(&value, bytes_.data() + at, sizeof(T));
    return value;
  }
  [[nodiscard]] std::string_view text_at(uint64_t at, uint64_t size) const {
    return {reinterpret_cast<const char*>(bytes_.data()) + at, static_cast<size_t>(size)};
  }

  [[nodiscard]] uint64_t find_end() const {
    const uint64_t size = bytes_.size();
    for (uint64_t back = kEndSize; back <= std::min(size, kEndSize + kMaxComment); ++back) {
      const uint64_t at = size - back;
      // The record ends with a comment that reaches to the end of the file.
      if (number_at<uint32_t>(at) == kEndSignature && number_at<uint16_t>(at + 20) == back - kEndSize) return at;
    }
    fail(concat(what_, ": must end with a zip directory, got none (the file may have been cut off)"));
  }

  [[nodiscard]] Directory find_directory() const {
    const uint64_t end = find_end();
    const auto volume = number_at<uint16_t>(end + 4), directory_volume = number_at<uint16_t>(end + 6);
    const auto count_here = number_at<uint16_t>(end + 8), count = number_at<uint16_t>(end + 10);
    const auto size = number_at<uint32_t>(end + 12), begin = number_at<uint32_t>(end + 16);
    require((volume == 0 || volume == kElsewhere16) && directory_volume == volume && count_here == count, what_,
            ": must be a zip archive of one volume, got several");
    if (end < kLocatorSize || number_at<uint32_t>(end - kLocatorSize) != kLocatorSignature) {
      return checked({.count = count, .begin = begin, .end = uint64_t{begin} + size}, end);
    }

    const uint64_t locator = end - kLocatorSize, end64 = number_at<uint64_t>(locator + 8);
    require(locator >= kEnd64Size && end64 <= locator - kEnd64Size && number_at<uint32_t>(end64) == kEnd64Signature,
            what_, ": the zip64 locator must lead to the zip64 end record, got byte ", end64);
    const auto count64 = number_at<uint64_t>(end64 + 32), size64 = number_at<uint64_t>(end64 + 40),
               begin64 = number_at<uint64_t>(end64 + 48);
    const bool agree = (count == kElsewhere16 || count == count64) && (size == kElsewhere32 || size == size64) &&
                       (begin == kElsewhere32 || begin == begin64);
    require(agree, what_, ": both end records of a zip64 archive must say the same, got ", count, " members in ", size,
            " bytes at ", begin, " and ", count64, " in ", size64, " at ", begin64);
    require(size64 <= end64 && begin64 == end64 - size64, what_, ": the zip directory must end at byte ", end64,
            ", got ", size64, " bytes at ", begin64);
    return checked({.count = count64, .begin = begin64, .end = end64}, end64);
  }

  [[nodiscard]] Directory checked(const Directory& directory, uint64_t end) const {
    require(directory.end == end, what_, ": the zip directory must end at byte ", end, ", got ", directory.end);
    require(directory.count <= (directory.end - directory.begin) / kCentralSize, what_,
            ": the zip directory must have room for its members, got ", directory.count, " in ",
            directory.end - directory.begin, " bytes");
    return directory;
  }

  // Reads the directory's entry at `at`; where the next one begins.
  uint64_t read_member(uint64_t at, const Directory& directory, ZipMembers& members, std::vector<Member>& spans) {
    const uint64_t left = directory.end - at;
    require(left >= kCentralSize && number_at<uint32_t>(at) == kCentralSignature, what_,
            ": the zip directory must have an entry for each of its ", directory.count, " members, got something else");
    const auto flags = number_at<uint16_t>(at + 8), method = number_at<uint16_t>(at + 10);
    const auto name_size = number_at<uint16_t>(at + 28), extra_size = number_at<uint16_t>(at + 30),
               comment_size = number_at<uint16_t>(at + 32);
    const uint64_t entry_size = kCentralSize + name_size + extra_size + comment_size;
    require(entry_size <= left, what_, ": the zip directory's entries must end with it, got one that goes on");
    const std::string_view name = text_at(at + kCentralSize, name_size);
    const std::string place = place_of(name);

    uint64_t stored = number_at<uint32_t>(at + 20), size = number_at<uint32_t>(at + 24),
             begin = number_at<uint32_t>(at + 42);
    read_zip64(at + kCentralSize + name_size, extra_size, place, {&size, &stored, &begin});
    require((flags & kEncrypted) == 0, place, ": must not be encrypted, got encrypted data");
    require(method == kStored && stored == size, place,
            ": must be stored as torch.save does, got compressed data (method ", method, ", ", stored, " for ", size,
            " bytes)");

    // Members come before the directory.
    require(begin <= directory.begin && directory.begin - begin >= kLocalSize &&
                number_at<uint32_t>(begin) == kLocalSignature,
            place, ": its header must be where the zip directory says, got none at byte ", begin);
    const auto local_name_size = number_at<uint16_t>(begin + 26);
    const uint64_t header = kLocalSize + local_name_size + number_at<uint16_t>(begin + 28);
    require(header <= directory.begin - begin && text_at(begin + kLocalSize, local_name_size) == name, place,
            ": must have this name in its own header, got another");
    require(number_at<uint16_t>(begin + 8) == kStored, place, ": must be stored as torch.save does, got method ",
            number_at<uint16_t>(begin + 8), " in its own header");
    require(size <= directory.begin - begin - header, place, ": must end before the zip directory (byte ",
            directory.begin, "), got ", size, " bytes at ", begin + header);

    const Bytes data = bytes_.subspan(static_cast<size_t>(begin + header), static_cast<size_t>(size));
    require(members.emplace(name, data).second, place, ": must be there once, got it twice");
    spans.push_back({std::string(name), begin, begin + header + size});
    return at + entry_size;
  }

  // Replaces the numbers that are too large for the entry, in this order, from its extra fields.
  void read_zip64(uint64_t at, uint64_t size, const std::string& place,
                  std::initializer_list<uint64_t*> numbers) const {
    if (std::ranges::none_of(numbers, [](const uint64_t* n) { return *n == kElsewhere32; })) return;
    const uint64_t end = at + size;
    while (end - at >= 4 && number_at<uint16_t>(at) != kZip64Extra) {
      const uint64_t field = 4 + uint64_t{number_at<uint16_t>(at + 2)};
      require(field <= end - at, place, ": its extra fields must end with its entry, got one that goes on");
      at += field;
    }
    require(end - at >= 4, place, ": must have a zip64 field for its large sizes, got none");
    uint64_t left = number_at<uint16_t>(at + 2);
    at += 4;
    require(left <= end - at, place, ": its extra fields must end with its entry, got one that goes on");
    for (uint64_t* const number : numbers) {
      if (*number != kElsewhere32) continue;
      require(left >= sizeof(uint64_t), place, ": its zip64 field must have every large size, got too few");
      *number = number_at<uint64_t>(at);
      at += sizeof(uint64_t);
      left -= sizeof(uint64_t);
    }
  }

  Bytes bytes_;
  const std::string& what_;
};

}  // namespace

ZipMembers read_stored_zip(Bytes bytes, const std::string& what) { return ZipReader(bytes, what).read(); }

}  // namespace elapid
