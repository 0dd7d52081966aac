#include "elapid/io/safetensors.h"

#include "elapid/io/json.h"
#include "tests/io/support.h"

#include <cstring>
#include <filesystem>
#include <gtest/gtest.h>
#include <limits>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

namespace elapid {
namespace {

namespace fs = std::filesystem;

Safetensors parse(const std::string& bytes) {
  return Safetensors::parse(std::as_bytes(std::span(bytes)), "a.safetensors");
}

void refuse(const std::string& bytes, std::initializer_list<std::string_view> parts) {
  expect_error([&] { parse(bytes); }, parts);
  expect_error([&] { parse(bytes); }, {"a.safetensors: "});
}

TEST(Safetensors, ReadsTensorsAndMetadata) {
  const std::string bytes = file_with("{" + entry("w", "F32", "[1,2]", 4, 12) + ',' + entry("b", "I32", "[1]", 0, 4) +
                                          R"(,"__metadata__":{"format":"pt"}} )",
                                      12);
  const Safetensors file = parse(bytes);
  EXPECT_EQ(file.entries().size(), 2);
  EXPECT_TRUE(file.contains("w"));
  EXPECT_FALSE(file.contains("v"));
  EXPECT_FALSE(file.contains("__metadata__"));
  EXPECT_EQ(file.at("w").dtype, DType::f32);
  EXPECT_EQ(file.at("w").shape, Shape(1, 2));
  EXPECT_EQ(contents_of(file.at("w")), bytes.substr(bytes.size() - 8));
  EXPECT_EQ(contents_of(file.at("b")), bytes.substr(bytes.size() - 12, 4));
  EXPECT_EQ(file.metadata(), (std::map<std::string, std::string>{{"format", "pt"}}));
  expect_error([&] { (void)file.at("v"); }, {"a.safetensors: tensor \"v\"", "no such tensor"});
}

TEST(Safetensors, ReadsScalarsAndEmptyTensors) {
  const Safetensors file =
      parse(file_with("{" + entry("scalar", "F64", "[]", 0, 8) + ',' + entry("empty", "F32", "[3,0,2]", 8, 8) + ',' +
                          entry("empty_inside", "F32", "[0]", 4, 4) + '}',
                      8));
  EXPECT_EQ(file.at("scalar").shape, Shape());
  EXPECT_EQ(file.at("scalar").size(), 1);
  EXPECT_EQ(file.at("empty").shape, Shape(3, 0, 2));
  EXPECT_EQ(file.at("empty").size(), 0);
  EXPECT_TRUE(file.at("empty"));  // present, not an absent operand
  EXPECT_EQ(file.at("empty_inside").size(), 0);
}

TEST(Safetensors, ReadsFilesWithoutTensors) { EXPECT_TRUE(parse(file_with("{}", 0)).entries().empty()); }

TEST(Safetensors, TensorsKeepTheFileAlive) {
  const ScratchFolder folder;
  const fs::path path = folder.write("a.safetensors", file_with("{" + entry("w", "U8", "[4]", 0, 4) + '}', 4));
  Safetensors::Entry kept;
  {
    const Safetensors file = Safetensors::open(path);
    kept = file.entries().at("w");
  }
  fs::remove(path);
  EXPECT_EQ(contents_of(kept.tensor), std::string("\0\1\2\3", 4));
  EXPECT_EQ(kept.file->path(), path);
}

TEST(SafetensorsErrors, Files) {
  const ScratchFolder folder;
  const auto refuse_file = [](const fs::path& path, std::string_view reason) {
    expect_error([&] { Safetensors::open(path); }, {path.string(), reason});
  };
  refuse_file(folder / "missing.safetensors", "No such file or directory");
  refuse_file(folder.write("empty.safetensors", ""), "got 0 bytes");
  fs::create_directory(folder / "folder.safetensors");
  refuse_file(folder / "folder.safetensors", "a directory");
  fs::create_symlink("loop.safetensors", folder / "loop.safetensors");
  refuse_file(folder / "loop.safetensors", "symbolic links");
  refuse_file(folder.write("text.safetensors", "this is no tensor file"), "header length");
}

TEST(SafetensorsErrors, HeaderLength) {
  const std::string good = file_with("{" + entry("w", "U8", "[4]", 0, 4) + '}', 4);
  for (size_t size = 0; size < good.size(); ++size) {
    SCOPED_TRACE(size);
    refuse(good.substr(0, size), {size < 8                 ? "must begin with a header length of 8 bytes"
                                  : size < good.size() - 4 ? "header length must be"
                                                           : "tensor \"w\": data_offsets must be ordered and within"});
  }
  const auto with_length = [&](uint64_t length) {
    std::string bytes = good;
    std::memcpy(bytes.data(), &length, sizeof(length));
    return bytes;
  };
  for (const uint64_t length : {uint64_t{0}, uint64_t{1}, uint64_t{good.size() - 7}, uint64_t{1} << 60,
                                uint64_t{1} << 63, std::numeric_limits<uint64_t>::max()}) {
    refuse(with_length(length), {"header length must be from 2 to ", "got " + std::to_string(length)});
  }
  const ScratchFolder folder;  // sparse: takes no space
  const fs::path huge = folder.write("huge.safetensors", with_length(100'000'001));
  fs::resize_file(huge, int64_t{1} << 30);
  expect_error([&] { Safetensors::open(huge); }, {huge.string(), "at most 100000000", "got 100000001"});
}

TEST(SafetensorsErrors, HeaderIsNoJsonObject) {
  refuse(file_with("not json at all", 0), {"header", "must be valid JSON", "at byte"});
  refuse(file_with("{\"w\":", 0), {"header", "must be valid JSON"});
  refuse(file_with(std::string(8, '\0'), 0), {"header", "must be valid JSON"});
  refuse(file_with(std::string(1'000'000, '['), 0), {"header", "256 deep"});
  refuse(file_with("[]", 0), {"header must be an object, got an array"});
  refuse(file_with("12", 0), {"header must be an object, got 12"});
}

TEST(SafetensorsErrors, EntryMembers) {
  const auto refuse_entry = [](std::string_view value, std::initializer_list<std::string_view> parts) {
    SCOPED_TRACE(value);
    const std::string bytes = file_with(concat("{\"layer.w\":", value, "}"), 4);
    refuse(bytes, parts);
    refuse(bytes, {"tensor \"layer.w\": "});
  };
  refuse_entry("[]", {"must be an object, got an array"});
  refuse_entry("null", {"must be an object, got null"});
  refuse_entry(R"({"shape":[4],"data_offsets":[0,4]})", {"got no dtype"});
  refuse_entry(R"({"dtype":"U8","data_offsets":[0,4]})", {"got no shape"});
  refuse_entry(R"({"dtype":"U8","shape":[4]})", {"got no data_offsets"});
  refuse_entry(R"({"dtype":"U8","shape":[4],"data_offsets":[0,4],"order":"F"})", {"only", "got \"order\""});

  refuse_entry(R"({"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]})", {"dtype must be one of", "\"F8_E4M3\""});
  refuse_entry(R"({"dtype":"I16","shape":[2],"data_offsets":[0,4]})", {"dtype must be one of", "\"I16\""});
  refuse_entry(R"({"dtype":"f32","shape":[1],"data_offsets":[0,4]})", {"dtype must be one of", "\"f32\""});
  refuse_entry(R"({"dtype":1,"shape":[1],"data_offsets":[0,4]})", {"dtype must be one of", "got 1"});

  refuse_entry(R"({"dtype":"U8","shape":4,"data_offsets":[0,4]})", {"shape must be an array, got 4"});
  refuse_entry(R"({"dtype":"U8","shape":[-4],"data_offsets":[0,4]})", {"dimension: must be an integer", "got -4"});
  refuse_entry(R"({"dtype":"U8","shape":[-2,-2],"data_offsets":[0,4]})", {"dimension: must be an integer", "got -2"});
  refuse_entry(R"({"dtype":"U8","shape":[4.0],"data_offsets":[0,4]})", {"dimension: must be an integer", "got 4.0"});
  refuse_entry(R"({"dtype":"U8","shape":["4"],"data_offsets":[0,4]})", {"dimension: must be an integer", "got \"4\""});
  refuse_entry(R"({"dtype":"U8","shape":[NaN],"data_offsets":[0,4]})", {"dimension: must be an integer", "got NaN"});
  refuse_entry(R"({"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,4]})",
               {"dimension: must be an integer"});
  refuse_entry(R"({"dtype":"U8","shape":[1,1,1,2,2],"data_offsets":[0,4]})", {"at most 4 dimensions, got 5"});

  refuse_entry(R"({"dtype":"U8","shape":[4],"data_offsets":[0]})", {"data_offsets must be an array of two, got 1"});
  refuse_entry(R"({"dtype":"U8","shape":[4],"data_offsets":[0,4,4]})", {"array of two, got 3"});
  refuse_entry(R"({"dtype":"U8","shape":[4],"data_offsets":{"0":0,"1":4}})", {"array of two, got an object"});
  refuse_entry(R"({"dtype":"U8","shape":[4],"data_offsets":[0,"4"]})", {"data_offsets[1]: must be an integer"});
  refuse_entry(R"({"dtype":"U8","shape":[4],"data_offsets":[-1,3]})",
               {"data_offsets[0]: must be an integer", "got -1"});
  refuse_entry(R"({"dtype":"U8","shape":[4],"data_offsets":[0.0,4]})", {"data_offsets[0]: must be an integer"});
}

TEST(SafetensorsErrors, Sizes) {
  const auto refuse_entry = [](std::string_view dtype, std::string_view shape, int64_t begin, int64_t end,
                               std::initializer_list<std::string_view> parts) {
    SCOPED_TRACE(concat(dtype, shape, begin, ',', end));
    const std::string bytes = file_with("{" + entry("layer.w", dtype, shape, begin, end) + '}', 8);
    refuse(bytes, parts);
    refuse(bytes, {"tensor \"layer.w\": "});
  };
  // Offsets past the end, and in the wrong order.
  refuse_entry("U8", "[9]", 0, 9, {"within the 8 bytes of data, got [0, 9]"});
  refuse_entry("U8", "[8]", 1, 9, {"within the 8 bytes of data, got [1, 9]"});
  refuse_entry("U8", "[8]", 4, 0, {"must be ordered", "got [4, 0]"});
  refuse_entry("U8", "[0]", 9, 9, {"within the 8 bytes of data"});
  refuse_entry("U8", "[8]", int64_t{1} << 62, (int64_t{1} << 62) + 8, {"within the 8 bytes of data"});
  refuse_entry("U8", "[8]", 0, std::numeric_limits<int64_t>::max(), {"within the 8 bytes of data"});
  // Shape and dtype that do not make up the bytes.
  refuse_entry("F32", "[3]", 0, 8, {"must span the 12 bytes of its shape and dtype, got 8"});
  refuse_entry("F32", "[1]", 0, 8, {"must span the 4 bytes"});
  refuse_entry("F64", "[2]", 0, 8, {"must span the 16 bytes"});
  refuse_entry("BF16", "[2,3]", 0, 8, {"must span the 12 bytes"});
  refuse_entry("F32", "[]", 0, 8, {"must span the 4 bytes"});
  refuse_entry("F32", "[0]", 0, 8, {"must span the 0 bytes"});
  // Products that overflow, also where a zero makes the true product 0 but no stride representable.
  refuse_entry("U8", "[4294967296,4294967296]", 0, 8, {"product of the dimensions"});
  refuse_entry("F64", "[2305843009213693952]", 0, 8, {"product of the dimensions"});
  refuse_entry("U8", "[9223372036854775807,9223372036854775807]", 0, 8, {"product of the dimensions"});
  refuse_entry("U8", "[0,4611686018427387904,4]", 0, 0, {"product of the dimensions"});
  refuse_entry("U8", "[4611686018427387904,4,0]", 0, 0, {"product of the dimensions"});
}

TEST(SafetensorsErrors, OverlapsAndHoles) {
  const auto bytes_with = [](std::initializer_list<std::pair<int64_t, int64_t>> ranges) {
    std::string header = "{";
    for (const auto& [begin, end] : ranges) {
      if (header.size() > 1) header += ',';
      header += entry("w" + std::to_string(begin), "U8", concat('[', end - begin, ']'), begin, end);
    }
    return file_with(header + '}', 8);
  };
  EXPECT_EQ(parse(bytes_with({{4, 8}, {0, 4}})).entries().size(), 2);
  refuse(bytes_with({{0, 5}, {4, 8}}), {"tensor \"w4\": must not overlap", "from byte 4", "ends at 5"});
  refuse(bytes_with({{0, 8}, {2, 4}}), {"tensor \"w2\": must not overlap"});
  refuse(file_with("{" + entry("a", "U8", "[8]", 0, 8) + ',' + entry("b", "U8", "[8]", 0, 8) + '}', 8),
         {"must not overlap"});
  refuse(bytes_with({{0, 4}, {5, 8}}), {"tensor \"w5\": must begin", "byte 4", "hole up to 5"});
  refuse(bytes_with({{1, 8}}), {"tensor \"w1\"", "hole up to 1"});
  refuse(bytes_with({{0, 4}}), {"must cover all 8 bytes", "got 4"});
  refuse(file_with("{}", 8), {"must cover all 8 bytes", "got 0"});
}

TEST(SafetensorsErrors, Names) {
  const std::string w = entry("layer.w", "U8", "[4]", 0, 4);
  refuse(file_with("{" + w + ',' + w + '}', 4), {"header", "\"layer.w\" twice"});
  // A name cannot break the line or flood the message.
  const std::string name = "evil\\n" + std::string(100'000, 'x');
  refuse(file_with("{" + entry(name, "U8", "[5]", 0, 5) + '}', 4), {"tensor \"evil\\nxxx"});
}

TEST(SafetensorsErrors, Metadata) {
  refuse(file_with(R"({"__metadata__":[]})", 0), {"__metadata__ must be an object"});
  refuse(file_with(R"({"__metadata__":{"format":1}})", 0), {"__metadata__", "\"format\" must be a string, got 1"});
  refuse(file_with(R"({"__metadata__":{"a":"1","a":"2"}})", 0), {"\"a\" twice"});
}

TEST(WriteSafetensors, RoundTripsEveryDtype) {
  const ScratchFolder folder;
  const fs::path path = folder / "out.safetensors";
  std::string data(64, '\0');
  std::iota(data.begin(), data.end(), 'A');
  std::vector<NamedTensor> tensors;
  for (const DType dtype : {DType::boolean, DType::u8, DType::i8, DType::f16, DType::bf16, DType::i32, DType::f32,
                            DType::i64, DType::f64}) {
    const std::string name(name_of(dtype));
    tensors.push_back({name, Tensor(data.data(), dtype, Shape(3))});
    tensors.push_back({name + ".scalar", Tensor(data.data() + 1, dtype, Shape())});
    tensors.push_back({name + ".empty", Tensor(nullptr, dtype, Shape(2, 0))});
    tensors.push_back({name + ".matrix", Tensor(data.data(), dtype, Shape(1, 2, 1, 3))});
  }
  const std::map<std::string, std::string> metadata = {{"format", "pt"}, {"a \"b\"\n", "d\u00e9\U0001F600"}};
  write_safetensors(path, tensors, metadata);
  EXPECT_EQ(folder.count_entries(), 1);

  const Safetensors file = Safetensors::open(path);
  EXPECT_EQ(file.metadata(), metadata);
  EXPECT_EQ(file.entries().size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    SCOPED_TRACE(name);
    EXPECT_EQ(file.at(name).dtype, tensor.dtype);
    EXPECT_EQ(file.at(name).shape, tensor.shape);
    EXPECT_EQ(contents_of(file.at(name)), tensor.size() == 0 ? "" : contents_of(tensor));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(file.at(name).data) % size_of(tensor.dtype), 0);
  }
  const auto header_length = *reinterpret_cast<const uint64_t*>(MappedFile::open(path)->bytes().data());
  EXPECT_EQ((8 + header_length) % 64, 0);
}

TEST(WriteSafetensors, OddNames) {
  const ScratchFolder folder;
  const fs::path path = folder / "out.safetensors";
  float value = 1;
  std::vector<NamedTensor> tensors;
  for (const std::string& name : {std::string(), std::string("a\nb"), std::string("\"\\"), std::string("a\0b", 3),
                                  std::string("\u4e16\u754c"), std::string(100'000, 'x')}) {
    tensors.push_back({name, Tensor(&value, DType::f32, Shape(1))});
  }
  write_safetensors(path, tensors);
  const Safetensors file = Safetensors::open(path);
  for (const NamedTensor& named : tensors) EXPECT_TRUE(file.contains(named.name)) << named.name;
}

TEST(WriteSafetensors, NoTensors) {
  const ScratchFolder folder;
  write_safetensors(folder / "out.safetensors", {});
  EXPECT_TRUE(Safetensors::open(folder / "out.safetensors").entries().empty());
}

TEST(WriteSafetensors, RefusesWhatTheFormatCannotHold) {
  const ScratchFolder folder;
  const fs::path path = folder / "out.safetensors";
  std::vector<float> data(12, 1.0F);
  const Tensor matrix(data.data(), DType::f32, Shape(3, 4));
  const auto refuse = [&](const std::vector<NamedTensor>& tensors, std::initializer_list<std::string_view> parts) {
    expect_error([&] { write_safetensors(path, tensors); }, parts);
    expect_error([&] { write_safetensors(path, tensors); }, {path.string()});
  };
  refuse({{"w", matrix.columns(1, 3)}}, {"tensor \"w\": must be dense"});
  refuse({{"w", matrix}, {"v", matrix}, {"w", matrix}}, {"tensor \"w\": must be written once"});
  refuse({{"__metadata__", matrix}}, {"tensor \"__metadata__\"", "reserved"});
  refuse({{"w", Tensor(nullptr, DType::f32, Shape(1))}}, {"tensor \"w\": must have data"});
  refuse({{"w\xff", matrix}}, {"tensor \"w", "UTF-8"});
  expect_error([&] { write_safetensors(path, {}, {{"key", "\xff"}}); }, {path.string(), "UTF-8"});
  expect_error([&] { write_safetensors(folder / "missing/out.safetensors", {}); }, {"missing/out.safetensors"});
  EXPECT_EQ(folder.count_entries(), 0);
  EXPECT_NO_THROW(write_safetensors(path, {{"w", matrix.slice(1, 3)}, {"v", matrix.columns(1, 1)}}));
}

// Files that others wrote.
TEST(Safetensors, ReadsTheBundledFixtures) {
  const fs::path data = fs::path(ELAPID_SOURCE_DIR) / "tests/data/conformance";
  ASSERT_TRUE(fs::exists(data)) << data;
  int64_t files = 0;
  for (const auto& item : fs::recursive_directory_iterator(data)) {
    if (item.path().extension() != ".safetensors") continue;
    const Safetensors file = Safetensors::open(item.path());
    int64_t bytes = 0;
    for (const auto& [name, e] : file.entries()) bytes += e.tensor.bytes();
    EXPECT_GT(bytes, 0) << item.path();
    EXPECT_LT(bytes, static_cast<int64_t>(item.file_size())) << item.path();
    ++files;
  }
  EXPECT_GT(files, 0);
}

}  // namespace
}  // namespace elapid
