#include "elapid/io/torch_file.h"

#include "elapid/io/json.h"
#include "elapid/io/pickle.h"
#include "elapid/io/zip.h"
#include "tests/io/support.h"
#include "tests/io/torch_support.h"

#include <filesystem>
#include <gtest/gtest.h>
#include <iomanip>
#include <limits>
#include <random>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace elapid {
namespace {

namespace fs = std::filesystem;

const fs::path kData = fs::path(ELAPID_SOURCE_DIR) / "tests/data/torch";

Bytes as_bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

StoredTensors parse(const std::string& bytes) { return parse_torch_file(as_bytes(bytes), "a.bin"); }

void refuse(const std::string& bytes, std::initializer_list<std::string_view> parts) {
  expect_error([&] { parse(bytes); }, parts);
  expect_error([&] { parse(bytes); }, {"a.bin: "});
}

// A pickle is refused in both formats.
void refuse_pickle(const std::string& text, std::initializer_list<std::string_view> parts) {
  refuse(torch_zip(text).str(), parts);
  refuse(torch_legacy(text, pickle("]"), ""), parts);
}

std::string fnv1a(const Tensor& tensor) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char byte : contents_of(tensor)) hash = (hash ^ static_cast<uint8_t>(byte)) * 0x100000001b3u;
  std::ostringstream hex;
  hex << std::hex << std::setfill('0') << std::setw(16) << hash;
  return hex.str();
}

std::string read(const std::string& name) { return read_text_file(kData / name); }

// Storage "0" of 24 floats.
const std::string kFloats = [] {
  std::string text;
  for (int i = 0; i < 24; ++i) text += bytes_of_number(static_cast<float>(i));
  return text;
}();

std::string zip_of_tensor(const std::string& tensor) {
  return torch_zip(pickle(pickled_dict(pickled("w") + tensor)), {kFloats}).str();
}
std::string zip_of_tensor(int64_t offset, std::initializer_list<int64_t> shape,
                          std::initializer_list<int64_t> strides) {
  return zip_of_tensor(pickled_tensor(pickled_storage("0", "Float", 24), offset, shape, strides));
}

// ---- What is read.

TEST(TorchFile, ReadsWhatTorchWrites) {
  const Json expected = parse_json(read("expected.json"), "expected.json");
  EXPECT_GE(expected.size(), 12);
  for (const auto& [file, tensors] : expected.items()) {
    SCOPED_TRACE(file);
    const StoredTensors got = read_torch_file(kData / file);
    EXPECT_EQ(got.size(), tensors.size());
    for (const auto& [name, want] : tensors.items()) {
      SCOPED_TRACE(name);
      ASSERT_TRUE(got.contains(name));
      const Tensor& tensor = got.at(name).tensor;
      const auto dims = std::span(tensor.shape.dims).first(static_cast<size_t>(tensor.shape.rank));
      EXPECT_EQ(name_of(tensor.dtype), want["dtype"].get<std::string>());
      EXPECT_EQ(std::vector<int64_t>(dims.begin(), dims.end()), want["shape"].get<std::vector<int64_t>>());
      EXPECT_EQ(fnv1a(tensor), want["fnv1a"].get<std::string>());
      EXPECT_TRUE(tensor.dense());
      EXPECT_TRUE(tensor);  // present, also when it is empty
    }
  }
}

TEST(TorchFile, ContiguousTensorsAreViewsOfTheFile) {
  for (const char* const name : {"torch_zip.bin", "torch_legacy.bin"}) {
    const StoredTensors tensors = read_torch_file(kData / name);
    for (const auto& [tensor_name, entry] : tensors) {
      SCOPED_TRACE(tensor_name);
      const Bytes file = entry.file->bytes();
      EXPECT_EQ(entry.file->path(), kData / name);
      EXPECT_EQ(file.size(), fs::file_size(kData / name));
      EXPECT_GE(entry.tensor.data, file.data());
      EXPECT_LE(static_cast<const std::byte*>(entry.tensor.data) + entry.tensor.bytes(), file.data() + file.size());
    }
    // Tied: one storage.
    EXPECT_EQ(tensors.at("lm_head.weight").tensor.data, tensors.at("backbone.embedding.weight").tensor.data);
  }
}

TEST(TorchFile, StridedTensorsHaveMemoryOfTheirOwn) {
  StoredTensor transposed, permuted;
  {
    StoredTensors tensors = read_torch_file(kData / "zip_protocol2.bin");
    EXPECT_NE(tensors.at("transposed").file, tensors.at("embedding.weight").file);
    EXPECT_EQ(tensors.at("transposed").file->path(), kData / "zip_protocol2.bin");
    EXPECT_EQ(tensors.at("column").file, tensors.at("permuted.4d").file);
    EXPECT_EQ(tensors.at("row").file, tensors.at("embedding.weight").file);  // a stride of 77 rows, of which there is 1
    EXPECT_LE(tensors.at("transposed").file->bytes().size(), fs::file_size(kData / "zip_protocol2.bin"));
    transposed = tensors.at("transposed");
    permuted = tensors.at("permuted.4d");
  }
  // They outlive the reader, and pages that are dropped are not lost with it.
  const std::string before = contents_of(transposed.tensor);
  transposed.file->drop_pages(transposed.file->bytes());
  EXPECT_EQ(contents_of(transposed.tensor), before);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(permuted.tensor.data) % 64, 0);

  // The same for more than a page, which could be dropped.
  const StoredTensors large =
      parse(torch_zip(pickle(pickled_dict(pickled("w") +
                                          pickled_tensor(pickled_storage("0", "Float", 8192), 0, {64, 128}, {1, 64}))),
                      {std::string(4 * 8192, 'x')})
                .str());
  const StoredTensor& copy = large.at("w");
  copy.file->drop_pages(copy.file->bytes());
  EXPECT_EQ(contents_of(copy.tensor), std::string(4 * 8192, 'x'));

  const StoredTensors numbers = parse(zip_of_tensor(1, {2, 3}, {12, 2}));
  std::vector<float> values(6);
  std::memcpy(values.data(), numbers.at("w").tensor.data, 24);
  EXPECT_EQ(values, (std::vector<float>{1, 3, 5, 13, 15, 17}));
  EXPECT_NE(numbers.at("w").file, nullptr);
}

TEST(TorchFile, ReadsStateDictsInsideOfOthers) {
  const std::string tensor = pickled_tensor(pickled_storage("0", "Float", 24), 0, {24}, {1});
  const std::string inner = pickled_dict(pickled("w") + tensor);
  for (const char* const key : {"state_dict", "model", "model_state_dict", "module"}) {
    const std::string outer = pickled_dict(pickled("epoch") + "K\x03" + pickled(key) + inner);
    EXPECT_EQ(parse(torch_zip(pickle(outer), {kFloats}).str()).size(), 1);
    const std::string deeper = pickled_dict(pickled("state_dict") + outer);
    EXPECT_EQ(parse(torch_zip(pickle(deeper), {kFloats}).str()).size(), 1);
  }
  EXPECT_TRUE(parse(torch_zip(pickle("}")).str()).empty());
  refuse_pickle(pickle("]"), {"must hold a dict of tensors, got a list"});
  refuse_pickle(pickle(pickled_dict(pickled("weights") + "}")),
                {"must hold tensors, itself or under state_dict, model"});
  // Tensors elsewhere are not passed over in silence.
  refuse(torch_zip(pickle(pickled_dict(pickled("v") + tensor + pickled("ema") + inner)), {kFloats}).str(),
         {"entry \"ema\" must be a tensor or plain data, got a dict with a tensor"});
}

TEST(TorchFile, ReadsPython2Names) {
  const std::string tensor = pickled_tensor(pickled_storage("0", "Float", 24), 0, {24}, {1});
  // OrderedDict([['w', tensor]]), with names as Python 2's str.
  const std::string dict = pickled_global("collections", "OrderedDict") + "](](U\x01w" + tensor + "ee\x85R";
  const StoredTensors tensors = parse(torch_zip(pickle(dict), {kFloats}).str());
  EXPECT_TRUE(tensors.contains("w"));
}

TEST(TorchFile, ReadsMemosWithGaps) {
  // Numbered from 1, and with numbers left out.
  const std::string name = pickled("w") + "r" + bytes_of_number(uint32_t{100'000});
  const std::string shape = "K\x18\x85q\x01", again = "h\x01";
  const std::string tensor = pickled_global("torch._utils", "_rebuild_tensor_v2") + "(" +
                             pickled_storage("0", "Float", 24) + pickled(int64_t{0}) + shape + "K\x01\x85\x89}tR";
  const std::string second = pickled_global("torch._utils", "_rebuild_tensor_v2") + "(" +
                             pickled_storage("0", "Float", 24) + pickled(int64_t{0}) + again + "K\x01\x85\x89}tR";
  const std::string text = pickle(pickled_dict(name + tensor + pickled("v") + second));
  EXPECT_EQ(parse(torch_zip(text, {kFloats}).str()).at("v").tensor.shape, Shape(24));
}

TEST(TorchFile, ReadsZip64) {
  const std::string text =
      pickle(pickled_dict(pickled("w") + pickled_tensor(pickled_storage("0", "Float", 24), 0, {24}, {1})));
  const std::string bytes = torch_zip(text, {kFloats}).str(true);  // which the tensors view
  const StoredTensors tensors = parse(bytes);
  EXPECT_EQ(contents_of(tensors.at("w").tensor), kFloats);
}

// ---- What is refused: programs.

TEST(TorchFileErrors, Globals) {
  for (const auto& [module, name] :
       std::vector<std::pair<std::string, std::string>>{{"os", "system"},
                                                        {"posix", "system"},
                                                        {"builtins", "eval"},
                                                        {"__builtin__", "exec"},
                                                        {"subprocess", "Popen"},
                                                        {"torch", "load"},
                                                        {"torch._utils", "_rebuild_tensor_v2.__globals__"},
                                                        {"collections", "Counter"},
                                                        {"torch", "ShortStorage"},
                                                        {"numpy.core.multiarray", "_reconstruct"},
                                                        {"argparse", "Namespace"}}) {
    SCOPED_TRACE(name);
    const std::string call = pickled_global(module, name) + pickled("true") + "\x85R";
    const std::string quoted = '"' + module + '.' + name + '"';
    refuse_pickle(pickle(call), {"must name only what tensors are made of", quoted});
    refuse_pickle(pickle(pickled_dict(pickled("w") + call)), {quoted});
    refuse_pickle(pickle(pickled(module) + pickled(name) + "\x93"), {quoted});
  }
  for (const char* const file : {"bad_os_system.bin", "bad_legacy_os_system.bin"}) {
    expect_error([&] { read_torch_file(kData / file); }, {file, "\"posix.system\""});
  }
  expect_error([&] { read_torch_file(kData / "bad_eval.bin"); }, {"\"__builtin__.eval\""});
  // A name cannot break the line or flood the message.
  refuse_pickle(pickle(pickled("a\nb" + std::string(100'000, 'x')) + pickled("c") + "\x93"), {"a\\nbxxx"});
}

TEST(TorchFileErrors, Operations) {
  // Those that make objects of classes, look up a registry, or belong to text protocols and other writers.
  for (const std::string_view op :
       {"\x81", "\x92", "i", "o", "\x82", "\x83", "\x84", "P",    "I",    "L",    "F",    "S",   "V",
        "g",    "p",    "d", "l", "2",    "\x8f", "\x90", "\x91", "\x96", "\x97", "\x98", "\xff"}) {
    refuse_pickle(pickle(std::string(op)), {"byte 2: operations must be those that torch.save writes, got 0x"});
  }
  refuse_pickle(pickle("(ios\nsystem\n"),
                {"operations must be those that torch.save writes, got 0x69 of \"os.system\""});
  refuse_pickle("}.", {"must begin with its protocol"});
  refuse_pickle(std::string("\x80\x00}.", 4), {"protocol must be from 2 to 5, got 0"});
  refuse_pickle("\x80\x06}.", {"protocol must be from 2 to 5, got 6"});
  refuse_pickle(pickle(""), {"must find 1 values, got 0"});
  refuse_pickle(pickle("NN"), {"must end with one value, got more"});
  refuse_pickle(pickle("(N"), {"must end with one value, got more"});
  refuse_pickle(pickle("Nt"), {"must follow a mark, got none"});
  refuse_pickle(pickle("N(\x85"), {"must find 1 values, got 0"});  // not below the mark
  refuse_pickle(pickle("}N\x85s"), {"must find 1 values"});
  refuse_pickle(pickle("}(Nu"), {"a dict's keys must have values"});
  refuse_pickle(pickle("](NNu"), {"must add to a dict, got a list"});
  refuse_pickle(pickle("}Na"), {"must add to a list, got a dict"});
  refuse_pickle(pickle("NNb"), {"attributes must be those of an OrderedDict, got None"});
  refuse_pickle(pickle("N)R"), {"a call must be of a name, got None"});
  refuse_pickle(pickle(pickled_global("torch", "Size") + "NR"), {"a call's arguments must be a tuple, got None"});
  refuse_pickle(pickle("NQ"), {"a persistent id must be a tuple, got None"});
  refuse_pickle(pickle("N" + pickled("x") + "\x93"), {"a global must be named by two texts, got None and \"x\""});
  refuse_pickle(pickle("ctorch"), {"a name must end with a newline"});
  refuse_pickle(pickle(pickled_global("collections", "OrderedDict") + "N\x85R"),
                {"OrderedDict's argument must be a list"});
  refuse_pickle(pickle(pickled_global("collections", "OrderedDict") + "]Na\x85R"), {"must be a list of pairs"});
}

TEST(TorchFileErrors, BombsInPickles) {
  refuse_pickle(pickle(std::string(100'000, '(')), {"must be nested at most 256 deep"});
  expect_error([] { parse(torch_zip("\x80\x02" + std::string(3'000'000, ')')).str()); },
               {"must have at most 2000000 operations"});
  refuse_pickle(pickle(std::string("h\0", 2)), {"memo index must be one that was put, got 0"});
  refuse_pickle(pickle("Nq\x03h\x02"), {"memo index must be one that was put, got 2"});
  refuse_pickle(pickle("Nr\xff\xff\xff\xff"), {"must have at most 2000000 operations"});
  refuse_pickle(pickle("X\xff\xff\xff\xff"), {"must go on for 4294967295 bytes, got only"});
  refuse_pickle(pickle("\x8d" + std::string(8, '\xff')), {"must go on for 18446744073709551615 bytes"});
  refuse_pickle(pickle("\x8b\xff\xff\xff\xff"), {"must go on for 4294967295 bytes"});
  refuse_pickle("\x80\x04\x95" + std::string(8, '\xff') + "}.", {"a frame must have at most"});
  // One list of many pairs, made a dict many times.
  std::string pairs = pickled_global("collections", "OrderedDict") + std::string("q\0](", 4);
  for (int i = 0; i < 3000; ++i) pairs += "NN\x86";
  pairs += "e\x85q\x01";
  std::string many = "(";
  for (int i = 0; i < 1000; ++i) many += std::string("h\0h\1R", 5);
  refuse_pickle(pickle(pairs + "0" + many + "t"), {"must have at most 2000000 operations"});
  // A pickle has a size of its own, whatever the file's.
  const std::string long_text = "\x80\x02]X" + bytes_of_number(uint32_t{65 << 20}) + std::string(65 << 20, 'x') + "a.";
  expect_error([&] { Pickle(as_bytes(long_text), {}, "a.bin"); }, {"must have at most 67108864 bytes"});
}

TEST(TorchFileErrors, ValuesThatContainThemselves) {
  const std::string tensor = pickled("w") + pickled_tensor(pickled_storage("0", "Float", 24), 0, {24}, {1});
  const auto with = [&](const std::string& value) {
    return torch_zip(pickle(pickled_dict(tensor + pickled("x") + value)), {kFloats}).str();
  };
  // Data, and not looked into twice.
  EXPECT_EQ(parse(with(std::string("]q\0h\0a", 6))).size(), 1);
  EXPECT_EQ(parse(with(std::string("}q\0h\0h\0s", 8))).size(), 1);
  EXPECT_EQ(parse(with(std::string("]q\0(h\0ta", 8))).size(), 1);
  std::string deep = "N";
  for (int i = 0; i < 500'000; ++i) deep += "\x85";
  EXPECT_EQ(parse(with(deep)).size(), 1);
  // Every level twice: 2^60 paths.
  std::string wide = "N";
  for (int i = 0; i < 60; ++i) wide += std::string("q") + static_cast<char>(i) + "h" + static_cast<char>(i) + "\x86";
  EXPECT_EQ(parse(with(wide)).size(), 1);

  refuse_pickle(pickle(std::string("}q\0", 3) + pickled("model") + std::string("h\0s", 3)), {"at most 4 dicts deep"});
  // A tensor whose storage's name, or whose size, is itself a tuple of itself.
  refuse(with(std::string("]q\0(h\0tQ", 8) + "0" + pickled_global("torch._utils", "_rebuild_tensor_v2") +
              std::string("(h\0h\0h\0h\0h\0h\0tR", 15)),
         {"must"});
  refuse(with(pickled_global("torch._utils", "_rebuild_parameter") + std::string("q\0", 2) + ")R" +
              std::string("q\1", 2) + "0h" + std::string("\0(h\1N}tR", 8)),
         {"tensor \"x\": a parameter must be of a tensor"});
}

// ---- What is refused: tensors.

TEST(TorchFileErrors, Views) {
  EXPECT_EQ(parse(zip_of_tensor(0, {4, 6}, {6, 1})).at("w").tensor.shape, Shape(4, 6));
  EXPECT_EQ(parse(zip_of_tensor(23, {}, {})).at("w").tensor.size(), 1);
  EXPECT_EQ(parse(zip_of_tensor(24, {0, 5}, {5, 1})).at("w").tensor.size(), 0);
  refuse(zip_of_tensor(24, {}, {}),
         {"tensor \"w\": must be within its storage of 24 elements, got one up to element 24"});
  refuse(zip_of_tensor(1, {24}, {1}), {"got one up to element 24"});
  refuse(zip_of_tensor(0, {5, 6}, {6, 1}), {"got one up to element 29"});
  refuse(zip_of_tensor(0, {2, 2}, {24, 1}), {"got one up to element 25"});
  refuse(zip_of_tensor(-1, {2}, {1}), {"its offset must be an integer of at least 0, got -1"});
  refuse(zip_of_tensor(0, {-2}, {1}), {"every dimension must be an integer of at least 0, got -2"});
  refuse(zip_of_tensor(2, {2}, {-1}), {"every stride must be an integer of at least 0, got -1"});
  // Integers of fewer bytes than eight have a sign too.
  refuse(zip_of_tensor(pickled_global("torch._utils", "_rebuild_tensor") + "(" + pickled_storage("0", "Float", 24) +
                       "\x8a\x01\xff" + "K\x01\x85K\x01\x85tR"),
         {"its offset must be an integer of at least 0, got -1"});
  refuse(zip_of_tensor(0, {2, 2}, {1}), {"its size and stride must be tuples of one length"});
  refuse(zip_of_tensor(0, {1, 1, 1, 1, 1}, {1, 1, 1, 1, 1}), {"must have at most 4 dimensions, got 5"});
  constexpr int64_t kLarge = int64_t{1} << 62;
  refuse(zip_of_tensor(0, {kLarge, 4}, {0, 0}), {"got sizes or strides beyond 63 bits"});
  refuse(zip_of_tensor(0, {3, 2}, {kLarge, 1}), {"got sizes or strides beyond 63 bits"});
  refuse(zip_of_tensor(kLarge, {3}, {kLarge}), {"got sizes or strides beyond 63 bits"});
  refuse(zip_of_tensor(0, {0, kLarge, 4}, {0, 0, 0}), {"got sizes or strides beyond 63 bits"});
  refuse(zip_of_tensor(0, {kLarge, 0}, {0, 0}), {"its size must fit 63 bits"});
  refuse(zip_of_tensor(kLarge, {2}, {1}), {"must be within its storage of 24 elements"});
}

TEST(TorchFileErrors, BombsInTensors) {
  // All elements are one: no memory in the file, four gigabytes outside of it.
  refuse(zip_of_tensor(0, {1 << 30}, {0}), {"tensor \"w\": strided tensors must together be no larger than the file"});
  // One copy of a storage is within the file, many are not.
  const auto transposed = [](int count) {
    std::string entries;
    for (int i = 0; i < count; ++i) {
      entries +=
          pickled("w" + std::to_string(i)) + pickled_tensor(pickled_storage("0", "Float", 1000), 0, {40, 25}, {1, 40});
    }
    return torch_zip(pickle(pickled_dict(entries)), {std::string(4000, 'x')}).str();
  };
  EXPECT_EQ(parse(transposed(1)).size(), 1);
  refuse(transposed(100), {"strided tensors must together be no larger than the file"});
  refuse(zip_of_tensor(0, {40, 24}, {0, 1}), {"strided tensors must together be no larger than the file"});
}

TEST(TorchFileErrors, ManyViewsOfOneStorage) {
  const auto views = [](int count) {
    std::string entries;
    for (int i = 0; i < count; ++i) {
      entries += pickled("w" + std::to_string(i)) +
                 pickled_tensor(pickled_storage("0", "Float", 100'000), 0, {100, 1000}, {1000, 1});
    }
    return torch_zip(pickle(pickled_dict(entries)), {std::string(400'000, 'x')}).str();
  };
  EXPECT_EQ(parse(views(16)).size(), 16);
  refuse(views(100), {"tensors must together be no larger than 16 times the file"});
}

TEST(TorchFileErrors, Storages) {
  const auto with_storage = [](const std::string& storage) {
    return zip_of_tensor(pickled_tensor(storage, 0, {1}, {1}));
  };
  EXPECT_EQ(parse(with_storage(pickled_storage("0", "Double", 12))).at("w").tensor.dtype, DType::f64);
  refuse(with_storage(pickled_storage("1", "Float", 24)),
         {"tensor \"w\": its storage must be in the file, got no \"1\""});
  refuse(with_storage(pickled_storage("../data/0", "Float", 24)), {"got no \"../data/0\""});
  refuse(with_storage(pickled_storage("0", "Float", 23)), {"must have 23 elements of 4 bytes, got 96 bytes"});
  refuse(with_storage(pickled_storage("0", "Float", 25)), {"must have 25 elements of 4 bytes, got 96 bytes"});
  refuse(with_storage(pickled_storage("0", "Float", int64_t{1} << 62)), {"its size must fit 63 bits"});
  refuse(with_storage(pickled_storage("0", "Float", -24)), {"its storage's size must be an integer of at least 0"});
  const std::string part = pickled("v");
  EXPECT_EQ(parse(with_storage(pickled_storage("0", "Float", 24, "(" + part + "K\x17K\x01t"))).size(), 1);
  refuse(with_storage(pickled_storage("0", "Float", 24, "(" + part + "K\x17K\x02t")),
         {"must be within the 24 elements"});
  refuse(with_storage(pickled_storage("0", "Float", 24, "(" + part + std::string("K\x18K\0t", 5))), {"of 0 elements"});
  refuse(with_storage(pickled_storage("0", "Float", 24, "K\x01")), {"must be given by a tuple of three, got 1"});
  refuse(with_storage("N"), {"must be a view of a storage, got None"});
  refuse(with_storage(")Q"), {"its storage must be named by"});
  refuse(with_storage("(" + pickled("module") + "NNNNtQ"), {"its storage must be named by"});
  refuse(with_storage("(" + pickled("storage") + "N" + pickled("0") + "NK\x01tQ"),
         {"must be of a storage class, got None"});
  refuse(with_storage("(" + pickled("storage") + pickled_global("torch", "float32") + pickled("0") + "NK\x01tQ"),
         {"must be of a storage class"});
  refuse(
      with_storage("(" + pickled("storage") + pickled_global("collections", "OrderedDict") + pickled("0") + "NK\x01tQ"),
      {"must be of a storage class"});
  refuse(with_storage(pickled_storage("0", "Untyped", 96)), {"its storage must have a type"});
}

TEST(TorchFileErrors, Tensors) {
  const std::string storage = pickled_storage("0", "Float", 24);
  const std::string view = storage + std::string("K\0", 2) + "K\x01\x85K\x01\x85";
  const auto call = [&](const std::string& function, const std::string& arguments) {
    return zip_of_tensor(pickled_global("torch._utils", function) + "(" + arguments + "tR");
  };
  EXPECT_EQ(parse(call("_rebuild_tensor", view)).size(), 1);
  EXPECT_EQ(parse(call("_rebuild_tensor_v2", view + "\x89}}")).size(), 1);
  EXPECT_EQ(parse(call("_rebuild_tensor_v2", view + "\x89}N")).size(), 1);
  refuse(call("_rebuild_tensor", view + "N"), {"must be made of 4 to 4 arguments, got 5"});
  refuse(call("_rebuild_tensor_v2", view), {"must be made of 6 to 7 arguments, got 4"});
  // Conjugated or negated values are not those in the file.
  refuse(call("_rebuild_tensor_v2", view + "\x89}" + pickled_dict(pickled("neg") + "\x88")), {"got metadata"});
  EXPECT_EQ(parse(call("_rebuild_tensor_v3", view + "\x89}" + pickled_global("torch", "int32"))).at("w").tensor.dtype,
            DType::i32);
  refuse(call("_rebuild_tensor_v3", view + "\x89}N"), {"must have a dtype, got None"});
  refuse(call("_rebuild_tensor_v3", view + "\x89}" + pickled_global("torch", "FloatStorage")), {"must have a dtype"});
  refuse(call("_rebuild_tensor_v3", view + "\x89}" + pickled_global("torch", "float8_e4m3fn")),
         {"\"torch.float8_e4m3fn\""});
  refuse(call("_rebuild_parameter", ""), {"a parameter must be of a tensor"});
  refuse(call("_rebuild_parameter", storage), {"a parameter must be of a tensor, got a storage"});

  const std::string tensor = pickled_tensor(storage, 0, {24}, {1});
  const auto dict = [](const std::string& text) { return torch_zip(pickle(pickled_dict(text)), {kFloats}).str(); };
  refuse(dict(pickled("w") + tensor + pickled("w") + tensor), {"tensor \"w\": must be there once, got it twice"});
  refuse(dict("K\x07" + tensor), {"tensors must be named by texts, got 7"});
  refuse(dict(pickled("w") + tensor + pickled("s") + storage),
         {"entry \"s\" must be a tensor or plain data, got a storage"});
  refuse(dict(pickled("w") + tensor + pickled("l") + "]" + storage + "\x85" + "a"),
         {"entry \"l\"", "a list with a storage"});
  EXPECT_EQ(
      parse(dict(pickled("w") + tensor + pickled("s") + pickled_global("torch", "Size") + "K\x03\x85\x85R")).size(), 1);
}

// ---- What is refused: archives.

class Archives : public testing::Test {
 protected:
  ZipText zip_ = torch_zip(
      pickle(pickled_dict(pickled("w") + pickled_tensor(pickled_storage("0", "Float", 24), 0, {24}, {1}))), {kFloats});
  ZipText::Member& storage() { return zip_.members[1]; }
  void refuse_zip(std::initializer_list<std::string_view> parts) const {
    for (const bool zip64 : {false, true}) refuse(zip_.str(zip64), parts);
  }
};

TEST_F(Archives, AreReadWithAComment) {
  zip_.comment = "made by hand";
  EXPECT_EQ(parse(zip_.str()).size(), 1);
  refuse(zip_.str() + "x", {"must end with a zip directory, got none"});
}

TEST_F(Archives, CompressedMembers) {
  // A few bytes that claim to be a gigabyte.
  storage().method = 8;
  refuse_zip({"zip member \"a/data/0\": must be stored as torch.save does, got compressed data (method 8"});
  storage().method = 0;
  storage().flags |= 1;
  refuse_zip({"must not be encrypted"});
}

TEST_F(Archives, SizesAndPlacesThatLie) {
  for (const int64_t size : {int64_t{97}, int64_t{1} << 30, int64_t{1} << 31}) {
    storage().size = size;
    refuse_zip({"zip member \"a/data/0\": must end before the zip directory"});
  }
  for (const int64_t size : {int64_t{1} << 62, std::numeric_limits<int64_t>::max()}) {
    storage().size = size;
    refuse(zip_.str(true), {"must end before the zip directory"});
  }
  storage().size = -1;
  for (const int64_t begin : {int64_t{1}, int64_t{20}, int64_t{1} << 31}) {
    storage().begin = begin;
    refuse_zip({"zip member \"a/data/0\": its header must be where the zip directory says"});
  }
  for (const int64_t begin : {int64_t{1} << 62, std::numeric_limits<int64_t>::max()}) {
    storage().begin = begin;
    refuse(zip_.str(true), {"its header must be where the zip directory says"});
  }
}

TEST_F(Archives, OverlappingMembers) {
  // Two members, one place: their names must differ, and so must the headers.
  storage().begin = 0;
  refuse_zip({"zip member \"a/data/0\": must have this name in its own header, got another"});
  // A member whose data is the next member.
  zip_.members.insert(zip_.members.begin() + 1, {"a/data/1", "", 0, 0x808, 30 + 8 + 96, -1, ""});
  zip_.members[2].begin = -1;
  refuse_zip({"must not overlap another, got \"a/data/1\" in the same bytes"});
}

TEST_F(Archives, Names) {
  zip_.members.push_back(storage());
  refuse_zip({"zip member \"a/data/0\": must be there once, got it twice"});
  zip_.members.pop_back();
  zip_.members.push_back({"b/data.pkl", pickle("}"), 0, 0x808, -1, -1, ""});
  refuse_zip({"must have one data.pkl, got two"});
  zip_.members.back().name = "a/b/data.pkl";  // not at the top
  EXPECT_EQ(parse(zip_.str()).size(), 1);
  // Nothing is written under the names of members, and nothing else is found under them.
  for (const char* const name : {"../../etc/passwd", "/etc/passwd", "a/data/../data/0", "", "a/data/", "A/DATA/0"}) {
    zip_.members.back().name = name;
    EXPECT_EQ(contents_of(parse(zip_.str()).at("w").tensor), kFloats) << name;
  }
  zip_.members.pop_back();
  storage().local_name = "a/data/7";
  refuse_zip({"must have this name in its own header, got another"});
  zip_.members = {{"readme.txt", "", 0, 0x808, -1, -1, ""}};
  refuse_zip({"must have a data.pkl as torch.save writes it"});
}

TEST_F(Archives, ByteOrder) {
  zip_.members.push_back({"a/byteorder", "little", 0, 0x808, -1, -1, ""});
  EXPECT_EQ(parse(zip_.str()).size(), 1);
  zip_.members.back().data = "big";
  refuse_zip({"byteorder must be \"little\", got \"big\""});
}

TEST_F(Archives, DirectoriesThatLie) {
  zip_.count_said = 1;
  refuse_zip({"the zip directory's members must take its"});
  zip_.count_said = 3;
  refuse_zip({"the zip directory must have", "3"});
  zip_.count_said = 60000;
  refuse_zip({"the zip directory must have room for its members, got 60000"});
  zip_.count_said = -1;

  const std::string good = zip_.str(true);
  const auto spoil = [&](size_t from_end, auto value, std::initializer_list<std::string_view> parts) {
    std::string bytes = good;
    std::memcpy(bytes.data() + bytes.size() - from_end, &value, sizeof(value));
    refuse(bytes, parts);
  };
  constexpr size_t kEnd = 22, kLocator = 20, kEnd64 = 56;
  spoil(kEnd - 4, uint16_t{1}, {"of one volume"});
  spoil(kEnd - 10, uint16_t{7}, {"of one volume"});
  spoil(kEnd - 12, uint32_t{7}, {"both end records of a zip64 archive must say the same"});
  spoil(kEnd - 16, uint32_t{7}, {"both end records of a zip64 archive must say the same"});
  spoil(kEnd + kLocator - 8, uint64_t{0}, {"the zip64 locator must lead to the zip64 end record, got byte 0"});
  spoil(kEnd + kLocator - 8, ~uint64_t{0}, {"the zip64 locator must lead to the zip64 end record"});
  spoil(kEnd + kLocator + kEnd64 - 32, uint64_t{1} << 40, {"both end records of a zip64 archive must say the same"});
  // Where the end record leaves a number to the zip64 record, that one is checked too.
  std::string large = good;
  std::memset(large.data() + large.size() - kEnd + 8, 0xff, 12);
  EXPECT_EQ(parse(large).size(), 1);
  for (const size_t field : {32, 40, 48}) {
    for (const uint64_t value : {uint64_t{0}, uint64_t{1} << 40, uint64_t{1} << 63, ~uint64_t{0}}) {
      std::string bytes = large;
      std::memcpy(bytes.data() + bytes.size() - kEnd - kLocator - kEnd64 + field, &value, sizeof(value));
      refuse(bytes, {"the zip directory"});
    }
  }
}

TEST(TorchFileErrors, OtherFiles) {
  refuse("", {"must be a file that torch.save wrote"});
  refuse("{\"a\": 1}", {"must be a file that torch.save wrote, got another beginning"});
  refuse(std::string(257, '\0') + "ustar" + std::string(250, '\0'), {"the tar format of torch before 0.1.10"});
  refuse("PK\x03\x04", {"must end with a zip directory"});
  refuse(pickle("}"), {"must begin with the number that torch.save writes first"});
  const ScratchFolder folder;
  expect_error([&] { read_torch_file(folder / "none.bin"); }, {"none.bin", "No such file"});
}

TEST(TorchFileErrors, LegacyFiles) {
  const std::string tensor = pickled_tensor(pickled_storage("7", "Float", 24, "N"), 0, {24}, {1});
  const std::string text = pickle(pickled_dict(pickled("w") + tensor));
  const std::string keys = pickle("]" + pickled("7") + "a"), storage = bytes_of_number(int64_t{24}) + kFloats;
  EXPECT_EQ(contents_of(parse(torch_legacy(text, keys, storage)).at("w").tensor), kFloats);
  refuse(torch_legacy(text, keys, ""), {"must have every storage that it lists, got the end"});
  refuse(torch_legacy(text, keys, storage.substr(0, 100)),
         {"a storage of 24 elements of 4 bytes must be within the file"});
  for (const int64_t size : {int64_t{25}, int64_t{-1}, int64_t{1} << 62, std::numeric_limits<int64_t>::min()}) {
    refuse(torch_legacy(text, keys, bytes_of_number(size) + kFloats), {"must be within the file, got 96 bytes"});
  }
  refuse(torch_legacy(text, keys, bytes_of_number(int64_t{23}) + kFloats),
         {"must have 24 elements of 4 bytes, got 92"});
  refuse(torch_legacy(text, pickle("]"), storage), {"its storage must be in the file, got no \"7\""});
  refuse(torch_legacy(text, pickle("]" + pickled("8") + "a"), storage),
         {"every storage must be used, got none for key \"8\""});
  refuse(torch_legacy(text, pickle("](" + pickled("7") + pickled("7") + "e"), storage + storage), {"key \"7\" twice"});
  refuse(torch_legacy(text,
                      pickle("]K\x07"
                             "a"),
                      storage),
         {"storage keys must be texts, got 7"});
  refuse(torch_legacy(text, pickle("}"), storage), {"storage keys must be a list, got a dict"});
  const std::string other = pickled_tensor(pickled_storage("7", "Double", 12, "N"), 0, {12}, {1});
  refuse(torch_legacy(pickle(pickled_dict(pickled("w") + tensor + pickled("v") + other)), keys, storage),
         {"a storage must have one type, got two for key \"7\""});
  std::string big_endian = torch_legacy(text, keys, storage);
  big_endian[big_endian.find('\x88')] = '\x89';
  refuse(big_endian, {"must be little-endian"});
  std::string newer = torch_legacy(text, keys, storage);
  newer[newer.find("M\xe9") + 1] = '\xea';
  refuse(newer, {"protocol version must be 1001, got 1002"});
}

// ---- Damage.

// Reads everything; true when there was something to read.
bool can_read(const std::string& bytes) {
  try {
    int64_t sum = 0, copied = 0;
    for (const auto& [name, entry] : parse(bytes)) {
      for (const char byte : contents_of(entry.tensor)) sum += byte;
      if (entry.file) copied = std::ssize(entry.file->bytes());
    }
    EXPECT_LE(copied, 2 * std::ssize(bytes) + 64 * 64) << sum;
    return true;
  } catch (const Error& error) {
    EXPECT_EQ(std::string_view(error.what()).find('\n'), std::string_view::npos);
    return false;
  }
}

TEST(TorchFileDamage, CutAnywhere) {
  for (const char* const name :
       {"zip_protocol2.bin", "zip_protocol4.bin", "legacy_protocol2.bin", "legacy_protocol4.bin"}) {
    const std::string good = read(name);
    ASSERT_TRUE(can_read(good));
    for (size_t size = 0; size < good.size(); ++size)
      ASSERT_FALSE(can_read(good.substr(0, size))) << name << ' ' << size;
  }
}

TEST(TorchFileDamage, ChangedAnywhere) {
  std::mt19937_64 random(1);
  int64_t survived = 0;
  for (const char* const name :
       {"zip_protocol2.bin", "zip_protocol4.bin", "legacy_protocol2.bin", "legacy_protocol4.bin"}) {
    const std::string good = read(name);
    for (int round = 0; round < 5000; ++round) {
      std::string bytes = good;
      for (uint64_t changes = 1 + random() % 4; changes > 0; --changes) {
        char& byte = bytes[random() % bytes.size()];
        byte = static_cast<char>(random() % 2 == 0 ? byte ^ (1 << random() % 8) : random());
      }
      survived += can_read(bytes) ? 1 : 0;
    }
  }
  // Most of a file is values, and names may be any.
  EXPECT_GT(survived, 1000);
  EXPECT_LT(survived, 19000);
}

}  // namespace
}  // namespace elapid
