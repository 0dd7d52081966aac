#include "elapid/io/checkpoint.h"

#include "elapid/io/json.h"
#include "elapid/io/safetensors.h"
#include "elapid/io/torch_file.h"
#include "tests/io/support.h"

#include <filesystem>
#include <gtest/gtest.h>
#include <string>
#include <string_view>
#include <vector>

namespace elapid {
namespace {

namespace fs = std::filesystem;

// A folder of two shards, with an index that tests can spoil.
class Shards : public testing::Test {
 protected:
  void SetUp() override {
    folder_.write("model-1.safetensors",
                  file_with(R"({"__metadata__":{"format":"pt"},)" + entry("a", "U8", "[4]", 0, 4) + ',' +
                                entry("b", "U8", "[2]", 4, 6) + '}',
                            6));
    folder_.write("model-2.safetensors", file_with("{" + entry("c", "F32", "[1]", 0, 4) + '}', 4));
    write_index(R"({"a":"model-1.safetensors","b":"model-1.safetensors","c":"model-2.safetensors"})");
  }

  void write_index(std::string_view weight_map) const {
    folder_.write("model.safetensors.index.json",
                  concat(R"({"metadata":{"total_size":10},"weight_map":)", weight_map, "}"));
  }

  void refuse(std::initializer_list<std::string_view> parts) const {
    expect_error([&] { Checkpoint::open_folder(folder_.path()); }, parts);
    expect_error([&] { Checkpoint::open_folder(folder_.path()); }, {folder_.path().string()});
  }

  ScratchFolder folder_;
};

TEST_F(Shards, AreSeenAsOne) {
  const Checkpoint weights = Checkpoint::open_folder(folder_.path());
  EXPECT_EQ(weights.entries().size(), 3);
  EXPECT_EQ(contents_of(weights.at("b")), "\4\5");
  EXPECT_EQ(weights.entries().at("c").file->path(), folder_ / "model-2.safetensors");
  expect_error([&] { (void)weights.at("d"); }, {folder_.path().string(), "tensor \"d\""});
}

TEST_F(Shards, MayBeLinks) {
  fs::create_directory(folder_ / "blobs");
  fs::rename(folder_ / "model-1.safetensors", folder_ / "blobs/0123");
  fs::create_symlink("blobs/0123", folder_ / "model-1.safetensors");
  EXPECT_EQ(Checkpoint::open_folder(folder_.path()).entries().size(), 3);
}

TEST_F(Shards, SingleFileGoesFirst) {
  folder_.write("model.safetensors", file_with("{}", 0));
  EXPECT_TRUE(Checkpoint::open_folder(folder_.path()).entries().empty());
  fs::remove(folder_ / "model.safetensors");
  fs::create_symlink("model.safetensors", folder_ / "model.safetensors");
  refuse({"/model.safetensors", "symbolic links"});
}

TEST_F(Shards, MissingShard) {
  fs::remove(folder_ / "model-2.safetensors");
  refuse({"index.json", "no \"model-2.safetensors\""});
}

TEST_F(Shards, DamagedShard) {
  folder_.write("model-2.safetensors", "");
  refuse({"/model-2.safetensors", "got 0 bytes"});
}

TEST_F(Shards, NamesThatLeaveTheFolder) {
  for (const std::string_view name : {"../model-1.safetensors", "/etc/passwd", "below/model-1.safetensors", "..", ".",
                                      "", "model-1.safetensors\\u0000.txt"}) {
    SCOPED_TRACE(name);
    write_index(concat(R"({"a":")", name, R"("})"));
    refuse({"index.json", "tensor \"a\"", "must be a plain file name"});
  }
}

TEST_F(Shards, TensorInAnotherShardThanListed) {
  write_index(R"({"a":"model-1.safetensors","b":"model-2.safetensors","c":"model-2.safetensors"})");
  refuse({"model-1.safetensors: tensor \"b\"", "index.json", "(\"model-2.safetensors\"), got it in \"model-1"});
}

TEST_F(Shards, TensorInTwoShards) {
  folder_.write("model-2.safetensors",
                file_with("{" + entry("c", "U8", "[2]", 0, 2) + ',' + entry("b", "U8", "[2]", 2, 4) + '}', 4));
  refuse({"model-2.safetensors: tensor \"b\"", "(\"model-1.safetensors\"), got it in \"model-2"});
}

TEST_F(Shards, TensorNotListed) {
  write_index(R"({"a":"model-1.safetensors","c":"model-2.safetensors"})");
  refuse({"model-1.safetensors: tensor \"b\"", "must be listed in", "index.json"});
}

TEST_F(Shards, ListedTensorMissing) {
  write_index(R"({"a":"model-1.safetensors","b":"model-1.safetensors","c":"model-2.safetensors",
                  "d":"model-2.safetensors"})");
  refuse({"model-2.safetensors: tensor \"d\"", "index.json", "no such tensor"});
}

TEST_F(Shards, BadIndex) {
  const auto refuse_index = [&](std::string_view text, std::initializer_list<std::string_view> parts) {
    SCOPED_TRACE(text);
    folder_.write("model.safetensors.index.json", text);
    refuse(parts);
    refuse({"index.json"});
  };
  refuse_index("", {"must be valid JSON"});
  refuse_index("not json", {"must be valid JSON"});
  refuse_index("[]", {"must be an object, got an array"});
  refuse_index("{}", {"weight_map must be an object, got none"});
  refuse_index(R"({"weight_map":[]})", {"weight_map must be an object, got an array"});
  refuse_index(R"({"weight_map":{"a":1}})", {"tensor \"a\"", "must be a string, got 1"});
  refuse_index(R"({"weight_map":{"a":"model-1.safetensors","a":"model-2.safetensors"}})", {"\"a\" twice"});
}

// The same tensors in every form.
const fs::path kTorchFile = fs::path(ELAPID_SOURCE_DIR) / "tests/data/torch/torch_zip.bin";

class Forms : public testing::Test {
 protected:
  Forms() {
    for (const auto& [name, entry] : tensors_) named_.push_back({name, entry.tensor});
  }

  void expect_opens(int64_t count = -1) const {
    const Checkpoint checkpoint = Checkpoint::open_folder(folder_.path());
    EXPECT_EQ(std::ssize(checkpoint.entries()), count < 0 ? std::ssize(tensors_) : count);
    for (const auto& [name, entry] : checkpoint.entries()) {
      const Tensor& want = tensors_.at(name).tensor;
      EXPECT_EQ(entry.tensor.dtype, want.dtype) << name;
      EXPECT_EQ(entry.tensor.shape, want.shape) << name;
      EXPECT_EQ(contents_of(entry.tensor), contents_of(want)) << name;
      EXPECT_EQ(&checkpoint.at(name), &entry.tensor);
      EXPECT_TRUE(checkpoint.contains(name));
      ASSERT_NE(entry.file, nullptr);
    }
  }
  void write(const std::string& name) const { write_safetensors(folder_ / name, named_); }
  void copy_torch_file(const std::string& name) const { fs::copy_file(kTorchFile, folder_ / name); }

  const StoredTensors tensors_ = read_torch_file(kTorchFile);
  std::vector<NamedTensor> named_;
  ScratchFolder folder_;
};

TEST_F(Forms, HoldTheSameTensors) {
  for (const char* const name :
       {"model.safetensors", "consolidated.safetensors", "consolidated-00001-of-00001.safetensors"}) {
    SCOPED_TRACE(name);
    write(name);
    expect_opens();
    fs::remove(folder_ / name);
  }
  copy_torch_file("pytorch_model.bin");
  expect_opens();
}

TEST_F(Forms, TorchShards) {
  copy_torch_file("pytorch_model-00001-of-00001.bin");
  Json weight_map;
  for (const auto& [name, entry] : tensors_) weight_map[name] = "pytorch_model-00001-of-00001.bin";
  const auto write_index = [&] {
    folder_.write("pytorch_model.bin.index.json", Json{{"weight_map", weight_map}}.dump());
  };
  write_index();
  expect_opens();
  weight_map.erase("lm_head.weight");
  write_index();
  expect_error([&] { Checkpoint::open_folder(folder_.path()); }, {"tensor \"lm_head.weight\": must be listed in"});
}

TEST_F(Forms, ComeInOrder) {
  // Each of these goes before all that are there already.
  const std::string empty = file_with("{}", 0), index = R"({"weight_map":{}})";
  write_safetensors(folder_ / "consolidated-1-of-1.safetensors", {named_[0]});
  expect_opens(1);
  folder_.write("consolidated.safetensors.index.json", index);
  expect_opens(0);
  write_safetensors(folder_ / "consolidated.safetensors", {named_[0], named_[1]});
  expect_opens(2);
  folder_.write("pytorch_model.bin.index.json", index);
  expect_opens(0);
  copy_torch_file("pytorch_model.bin");
  expect_opens();
  folder_.write("model.safetensors.index.json", index);
  expect_opens(0);
  write_safetensors(folder_ / "model.safetensors", {named_[0], named_[1], named_[2]});
  expect_opens(3);
}

TEST_F(Forms, NumberedShards) {
  const auto write_part = [&](const std::string& name, size_t begin, size_t end) {
    write_safetensors(folder_ / name, {named_.begin() + static_cast<std::ptrdiff_t>(begin),
                                       named_.begin() + static_cast<std::ptrdiff_t>(end)});
  };
  const auto refuse = [&](std::initializer_list<std::string_view> parts) {
    expect_error([&] { Checkpoint::open_folder(folder_.path()); }, parts);
  };
  write_part("consolidated-00002-of-00002.safetensors", 5, named_.size());
  refuse({"must have all 2 shards of \"consolidated-00002-of-00002.safetensors\", got 1"});
  write_part("consolidated-00001-of-00002.safetensors", 0, 5);
  expect_opens();
  folder_.write("consolidated-old.safetensors", "not one of them");
  expect_opens();
  write_part("consolidated-00001-of-00002.safetensors", 0, 6);
  refuse({concat("tensor \"", named_[5].name, "\": must be in one shard, got it in two")});
  for (const char* const name : {"consolidated-00003-of-00003.safetensors", "consolidated-3-of-2.safetensors",
                                 "consolidated-0-of-2.safetensors", "consolidated-1-of-2.safetensors"}) {
    SCOPED_TRACE(name);
    write_part(name, 0, 1);
    refuse({"shards must be 1 to "});
    fs::remove(folder_ / name);
  }
}

TEST_F(Forms, AnErrorNamesTheFile) {
  copy_torch_file("pytorch_model.bin");
  expect_error([&] { (void)Checkpoint::open_folder(folder_.path()).at("d"); },
               {(folder_ / "pytorch_model.bin").string(), "tensor \"d\"", "no such tensor"});
  folder_.write("pytorch_model.bin", "x");
  expect_error([&] { Checkpoint::open_folder(folder_.path()); },
               {(folder_ / "pytorch_model.bin").string(), "must be a file that torch.save wrote"});
}

TEST(OpenFolder, SaysWhatItLookedFor) {
  const ScratchFolder folder;
  folder.write("pytorch_model.pt", "x");
  expect_error([&] { Checkpoint::open_folder(folder.path()); },
               {folder.path().string(), "model.safetensors, pytorch_model.bin or consolidated.safetensors"});
  expect_error([&] { Checkpoint::open_folder(folder / "missing"); }, {(folder / "missing").string()});
}

}  // namespace
}  // namespace elapid
