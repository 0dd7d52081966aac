#include "elapid/io/checkpoint_writer.h"

#include "elapid/core/buffer.h"
#include "elapid/io/checkpoint.h"
#include "elapid/io/json.h"
#include "elapid/io/safetensors.h"
#include "tests/io/support.h"

#include <filesystem>
#include <gtest/gtest.h>
#include <map>
#include <set>
#include <string>
#include <sys/inotify.h>
#include <unistd.h>
#include <vector>

namespace elapid {
namespace {

namespace fs = std::filesystem;

std::set<std::string> names_in(const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& file : fs::directory_iterator(folder)) names.insert(file.path().filename().string());
  return names;
}

class Writer : public testing::Test {
 protected:
  // Bytes that tell tensors apart; one buffer for all of them, as a caller that streams would have.
  Tensor produce(const TensorInfo& info) {
    const auto size = static_cast<size_t>(info.shape.size() * size_of(info.dtype));
    memory_.assign(size, info.name.back());
    largest_ = std::max(largest_, size);
    return {memory_.data(), info.dtype, info.shape};
  }
  CheckpointWriter::Produce producer() {
    return [this](const TensorInfo& info) { return produce(info); };
  }
  void expect_tensors(const fs::path& folder) const {
    const Checkpoint checkpoint = Checkpoint::open_folder(folder);
    EXPECT_EQ(checkpoint.entries().size(), infos_.size());
    for (const TensorInfo& info : infos_) {
      const Tensor& tensor = checkpoint.at(info.name);
      EXPECT_EQ(tensor.dtype, info.dtype);
      EXPECT_EQ(tensor.shape, info.shape);
      EXPECT_EQ(contents_of(tensor), std::string(static_cast<size_t>(tensor.bytes()), info.name.back()));
    }
  }

  // 60, 60, 20, 60, 20 and 20 bytes, the example of transformers' documentation.
  const std::vector<TensorInfo> infos_ = {{"w.a", DType::f32, {15}},  {"w.b", DType::f32, {3, 5}},
                                          {"w.c", DType::bf16, {10}}, {"w.d", DType::f32, {5, 3}},
                                          {"w.e", DType::u8, {20}},   {"w.f", DType::f16, {2, 5}}};
  ScratchFolder scratch_;
  fs::path folder_ = scratch_ / "out";
  std::vector<char> memory_;
  size_t largest_ = 0;
};

TEST_F(Writer, WritesOneFile) {
  {
    CheckpointWriter writer(folder_);
    writer.write_tensors(infos_, producer());
    writer.write_file("config.json", "{}");
    EXPECT_FALSE(fs::exists(folder_ / "config.json"));
    writer.commit();
    EXPECT_EQ(names_in(folder_), (std::set<std::string>{"config.json", "model.safetensors"}));
  }
  EXPECT_EQ(names_in(folder_), (std::set<std::string>{"config.json", "model.safetensors"}));
  EXPECT_EQ(Safetensors::open(folder_ / "model.safetensors").metadata().at("format"), "pt");
  EXPECT_EQ(largest_, 60);
  expect_tensors(folder_);
}

TEST_F(Writer, CutsShardsWhereTransformersDoes) {
  const auto shards_of = [&](int64_t limit) {
    const fs::path folder = scratch_ / std::to_string(limit);
    CheckpointWriter writer(folder);
    writer.write_tensors(infos_, producer(), limit);
    writer.commit();
    expect_tensors(folder);
    std::map<std::string, std::string> shards;
    const fs::path index = folder / "model.safetensors.index.json";
    if (!fs::exists(index)) return shards;
    const Json json = parse_json(read_text_file(index), "index");
    EXPECT_EQ(json["metadata"]["total_size"], 240);
    for (const TensorInfo& info : infos_) shards[json["weight_map"][info.name]] += info.name.back();
    EXPECT_EQ(names_in(folder).size(), shards.size() + 1);
    return shards;
  };
  using Shards = std::map<std::string, std::string>;
  EXPECT_EQ(shards_of(240), Shards{});
  EXPECT_EQ(shards_of(100), (Shards{{"model-00001-of-00003.safetensors", "a"},
                                    {"model-00002-of-00003.safetensors", "bc"},
                                    {"model-00003-of-00003.safetensors", "def"}}));
  // What is too large for any shard has one of its own, and does not end the current one.
  EXPECT_EQ(shards_of(50), (Shards{{"model-00001-of-00005.safetensors", "a"},
                                   {"model-00002-of-00005.safetensors", "b"},
                                   {"model-00003-of-00005.safetensors", "d"},
                                   {"model-00004-of-00005.safetensors", "ce"},
                                   {"model-00005-of-00005.safetensors", "f"}}));
  EXPECT_EQ(shards_of(1).size(), 6);
}

TEST_F(Writer, WritesNoTensors) {
  CheckpointWriter writer(folder_);
  writer.write_tensors({}, producer());
  writer.commit();
  EXPECT_TRUE(Checkpoint::open_folder(folder_).entries().empty());
}

TEST_F(Writer, CopiesWhatBelongsToTheTokenizer) {
  const fs::path from = scratch_ / "from";
  fs::create_directories(from / "tokenizer_of_another");
  const std::set<std::string> wanted = {
      "tokenizer.json",          "tokenizer_config.json", "tokenizer.model",        "vocab.json",         "merges.txt",
      "special_tokens_map.json", "added_tokens.json",     "generation_config.json", "chat_template.jinja"};
  for (const std::string& name : wanted) scratch_.write("from/" + name, "text of " + name);
  for (const char* const name : {"config.json", "model.safetensors", "README.md", "training_args.bin"}) {
    scratch_.write(std::string("from/") + name, "not copied");
  }
  // As the Hugging Face cache keeps them: links to blobs.
  fs::rename(from / "tokenizer.json", scratch_ / "blob");
  fs::create_symlink("../blob", from / "tokenizer.json");

  CheckpointWriter writer(folder_);
  const std::vector<std::string> names = writer.copy_side_files(from);
  writer.commit();
  EXPECT_EQ(std::set<std::string>(names.begin(), names.end()), wanted);
  EXPECT_EQ(names_in(folder_), wanted);
  EXPECT_FALSE(fs::is_symlink(folder_ / "tokenizer.json"));
  for (const std::string& name : wanted) EXPECT_EQ(read_text_file(folder_ / name), "text of " + name);
  fs::remove(scratch_ / "blob");
  CheckpointWriter other(scratch_ / "other");
  expect_error([&] { other.copy_side_files(from); }, {"tokenizer.json", "No such file"});
  expect_error([&] { other.copy_side_files(scratch_ / "none"); }, {"must be a readable folder"});
}

TEST_F(Writer, LeavesNothingWithoutCommit) {
  {
    CheckpointWriter writer(scratch_ / "deep/down/out");
    writer.write_tensors(infos_, producer(), 50);
    writer.write_file("config.json", "{}");
  }
  EXPECT_EQ(scratch_.count_entries(), 0);
  fs::create_directory(folder_);
  {
    CheckpointWriter writer(folder_);
    int written = 0;
    expect_error(
        [&] {
          writer.write_tensors(
              infos_,
              [&](const TensorInfo& info) {
                require(++written < 4, "no such tensor");
                return produce(info);
              },
              50);
        },
        {"no such tensor"});
  }
  EXPECT_TRUE(fs::is_empty(folder_));  // which was there before
}

TEST_F(Writer, LeavesNothingWhenNamesCannotBeGiven) {
  {
    CheckpointWriter writer(folder_);
    writer.write_tensors(infos_, producer(), 100);
    fs::create_directories(folder_ / "model.safetensors.index.json/in the way");
    expect_error([&] { writer.commit(); }, {"model.safetensors.index.json", "must be writable"});
  }
  EXPECT_EQ(names_in(folder_), (std::set<std::string>{"model.safetensors.index.json"}));
}

TEST_F(Writer, WhatLoadersLookForAppearsLast) {
  CheckpointWriter writer(folder_);
  writer.write_file("config.json", "{}");
  writer.write_tensors(infos_, producer(), 120);
  writer.write_file("tokenizer.json", "{}");
  const int watch = ::inotify_init1(IN_NONBLOCK);
  ASSERT_GE(::inotify_add_watch(watch, folder_.c_str(), IN_MOVED_TO), 0);
  writer.commit();
  alignas(inotify_event) char events[4096];
  const ssize_t size = ::read(watch, events, sizeof(events));
  ::close(watch);
  std::vector<std::string> names;
  for (ssize_t at = 0; at < size;) {
    const auto* const event = reinterpret_cast<const inotify_event*>(events + at);
    names.emplace_back(event->name);
    at += static_cast<ssize_t>(sizeof(inotify_event) + event->len);
  }
  EXPECT_EQ(names, (std::vector<std::string>{"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                                             "tokenizer.json", "config.json", "model.safetensors.index.json"}));
}

TEST_F(Writer, RefusesFoldersWithFiles) {
  const auto refuse = [](const fs::path& folder) {
    expect_error([&] { CheckpointWriter writer(folder); }, {folder.string(), "must be a new or an empty folder"});
  };
  fs::create_directory(folder_);
  scratch_.write("out/model.safetensors", "precious");
  refuse(folder_);
  refuse(folder_ / "model.safetensors");
  EXPECT_EQ(read_text_file(folder_ / "model.safetensors"), "precious");
  expect_error([&] { CheckpointWriter writer(folder_ / "model.safetensors/out"); }, {"must be writable"});
  fs::create_symlink("nowhere", scratch_ / "link");
  expect_error([&] { CheckpointWriter writer(scratch_ / "link/out"); }, {"must be writable"});
  EXPECT_TRUE(fs::is_symlink(scratch_ / "link"));
}

TEST_F(Writer, RefusesWrongTensorsAndNames) {
  CheckpointWriter writer(folder_);
  expect_error([&] { writer.write_tensors({infos_[0], infos_[0]}, producer()); }, {"\"w.a\" twice"});
  const auto refuse = [&](const Tensor& tensor, std::string_view part) {
    CheckpointWriter other(scratch_ / "other");
    expect_error([&] { other.write_tensors({infos_[1]}, [&](const TensorInfo&) { return tensor; }); },
                 {"\"w.b\"", part});
  };
  refuse(produce({"x", DType::f32, {5, 3}}), "the dtype and shape that were announced");
  refuse(produce({"x", DType::i32, {3, 5}}), "the dtype and shape that were announced");
  refuse(Tensor(nullptr, DType::f32, {3, 5}), "must have data");
  refuse(produce({"x", DType::f32, {3, 9}}).columns(0, 5), "must be dense");
  for (const char* const name : {"", ".", "..", "../config.json", "/config.json"}) {
    expect_error([&] { writer.write_file(name, ""); }, {"files must have plain names"});
  }
  writer.write_file("config.json", "");
  expect_error([&] { writer.write_file("config.json", ""); }, {"\"config.json\" twice"});
}

TEST(ByteSize, ReadsWhatTransformersReads) {
  const auto size = [](std::string_view text) { return parse_byte_size(text, "max_shard_size"); };
  EXPECT_EQ(size("5GB"), 5'000'000'000);
  EXPECT_EQ(size("200MB"), 200'000'000);
  EXPECT_EQ(size("10kb"), 10'000);
  EXPECT_EQ(size("1TB"), 1'000'000'000'000);
  EXPECT_EQ(size("1GiB"), 1 << 30);
  EXPECT_EQ(size("1.5 MiB"), 3 << 19);
  EXPECT_EQ(size("2KIB"), 2048);
  EXPECT_EQ(size("1TiB"), int64_t{1} << 40);
  EXPECT_EQ(size("0.1GB"), 100'000'000);
  EXPECT_EQ(size("4096"), 4096);
  EXPECT_EQ(size("7B"), 7);
  for (const char* const text : {"", "GB", "-1GB", "5XB", "5GBs", "1e3", "inf", "nan", "0", "0.5", "0.0000001KB",
                                 "9999999999GB", "5 G B", "0x10", " 5GB", "5,5GB"}) {
    expect_error([&] { size(text); }, {"max_shard_size: must be a size from 1 byte on", quote(text)});
  }
}

}  // namespace
}  // namespace elapid
