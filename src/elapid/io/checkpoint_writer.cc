#include "elapid/io/checkpoint_writer.h"

#include "elapid/core/error.h"
#include "elapid/io/json.h"
#include "elapid/io/safetensors.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <charconv>
#include <cmath>
#include <iomanip>
#include <set>
#include <sstream>
#include <system_error>
#include <unistd.h>
#include <utility>

namespace elapid {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kWeights = "model.safetensors", kIndex = "model.safetensors.index.json",
                           kConfig = "config.json";

// Files that go with the weights whatever their dtype and names.
bool is_side_file(std::string_view name) {
  constexpr std::array<std::string_view, 3> kPrefixes = {"tokenizer", "chat_template", "vocab."};
  constexpr std::array<std::string_view, 4> kNames = {"generation_config.json", "special_tokens_map.json",
                                                      "added_tokens.json", "merges.txt"};
  return std::ranges::any_of(kPrefixes, [&](std::string_view prefix) { return name.starts_with(prefix); }) ||
         std::ranges::find(kNames, name) != kNames.end();
}

std::string shard_name(size_t index, size_t count) {
  std::ostringstream name;
  name << "model-" << std::setfill('0') << std::setw(5) << index + 1 << "-of-" << std::setw(5) << count
       << ".safetensors";
  return name.str();
}

int64_t bytes_of(const TensorInfo& tensor) { return tensor.shape.size() * size_of(tensor.dtype); }

// As transformers does: in order, a new shard where the next tensor does not fit any more; a tensor that is too large
// for any shard has one of its own, and the current one goes on after it.
std::vector<std::vector<TensorInfo>> split(const std::vector<TensorInfo>& tensors, int64_t max_shard_bytes) {
  std::vector<std::vector<TensorInfo>> shards;
  std::vector<TensorInfo> current;
  int64_t current_bytes = 0;
  for (const TensorInfo& tensor : tensors) {
    const int64_t bytes = bytes_of(tensor);
    if (bytes > max_shard_bytes) {
      shards.push_back({tensor});
      continue;
    }
    if (current_bytes > max_shard_bytes - bytes) {
      shards.push_back(std::exchange(current, {}));
      current_bytes = 0;
    }
    current.push_back(tensor);
    current_bytes += bytes;
  }
  if (!current.empty() || shards.empty()) shards.push_back(std::move(current));
  return shards;
}

// What makes a folder look whole comes last.
int rank_of(std::string_view name) { return name == kConfig || name == kIndex || name == kWeights ? 1 : 0; }

}  // namespace

int64_t parse_byte_size(std::string_view text, const std::string& what) {
  struct Unit {
    std::string_view name;
    double bytes;
  };
  constexpr std::array kUnits = {Unit{"kib", 0x1p10}, Unit{"mib", 0x1p20}, Unit{"gib", 0x1p30}, Unit{"tib", 0x1p40},
                                 Unit{"kb", 1e3},     Unit{"mb", 1e6},     Unit{"gb", 1e9},     Unit{"tb", 1e12},
                                 Unit{"b", 1},        Unit{"", 1}};
  const char* const end = text.data() + text.size();
  double value = 0;
  const auto [rest, error] = std::from_chars(text.data(), end, value, std::chars_format::fixed);
  std::string unit(rest, end);
  unit.erase(0, std::min(unit.find_first_not_of(' '), unit.size()));
  for (char& letter : unit) letter = letter >= 'A' && letter <= 'Z' ? static_cast<char>(letter - 'A' + 'a') : letter;
  const auto known = std::ranges::find(kUnits, unit, &Unit::name);
  const bool is_size = error == std::errc() && known != kUnits.end() && std::isfinite(value);
  const double bytes = is_size ? value * known->bytes : 0;
  if (!is_size || bytes < 1 || bytes >= 0x1p63) {
    fail(concat(what, ": must be a size from 1 byte on, in KB, MB, GB, TB, KiB, MiB, GiB, TiB or bytes, got ",
                quote(text)));
  }
  return static_cast<int64_t>(bytes);
}

CheckpointWriter::CheckpointWriter(fs::path folder) : folder_(std::move(folder)) {
  std::error_code error;
  require(!fs::exists(folder_, error) || fs::is_empty(folder_, error), folder_.string(),
          ": must be a new or an empty folder, got one with files, or a file");
  for (fs::path missing = folder_; !missing.empty() && !fs::exists(missing, error); missing = missing.parent_path()) {
    created_.push_back(missing);
  }
  fs::create_directories(folder_, error);
  if (!error) {
    temporary_ = folder_ / concat(".elapid-", ::getpid(), ".tmp");
    fs::create_directory(temporary_, error);
  }
  if (error) {
    remove_all();
    fail(concat(folder_.string(), ": must be writable, got: ", error.message()));
  }
}

CheckpointWriter::~CheckpointWriter() {
  if (!is_committed_) remove_all();
}

void CheckpointWriter::remove_all() {
  std::error_code ignored;
  if (!temporary_.empty()) fs::remove_all(temporary_, ignored);
  for (size_t i = 0; i < moved_; ++i) fs::remove(folder_ / files_[i], ignored);
  // Only what was made here, and only where nobody else put something.
  for (const fs::path& folder : created_) ::rmdir(folder.c_str());
}

void CheckpointWriter::add(const std::string& name) {
  require(!name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos, folder_.string(),
          ": files must have plain names, got ", quote(name));
  require(std::ranges::find(files_, name) == files_.end(), folder_.string(), ": files must be written once, got ",
          quote(name), " twice");
  files_.push_back(name);
}

void CheckpointWriter::write_tensors(const std::vector<TensorInfo>& tensors, const Produce& produce,
                                     int64_t max_shard_bytes, const std::map<std::string, std::string>& metadata) {
  std::set<std::string_view> names;
  for (const TensorInfo& tensor : tensors) {
    require(names.insert(tensor.name).second, folder_.string(), ": tensors must be written once, got ",
            quote(tensor.name), " twice");
  }
  const std::vector<std::vector<TensorInfo>> shards = split(tensors, max_shard_bytes);
  Json weight_map = Json::object();
  int64_t total = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shards.size() == 1 ? std::string(kWeights) : shard_name(i, shards.size());
    add(name);
    SafetensorsWriter writer(temporary_ / name, shards[i], metadata);
    for (const TensorInfo& tensor : writer.layout()) {
      writer.write(produce(tensor));
      weight_map[tensor.name] = name;
      total += bytes_of(tensor);
    }
    writer.commit();
  }
  if (shards.size() == 1) return;
  const Json index = {{"metadata", {{"total_size", total}}}, {"weight_map", std::move(weight_map)}};
  write_file(std::string(kIndex), index.dump(2) + "\n");
}

void CheckpointWriter::write_file(const std::string& name, std::string_view contents) {
  add(name);
  AtomicFile file(temporary_ / name);
  file.write(contents);
  file.commit();
}

std::vector<std::string> CheckpointWriter::copy_side_files(const fs::path& from) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator file(from, error), end; !error && file != end; file.increment(error)) {
    std::string name = file->path().filename().string();
    if (is_side_file(name) && !file->is_directory()) names.push_back(std::move(name));
  }
  require(!error, from.string(), ": must be a readable folder, got: ", error.message());
  std::ranges::sort(names);
  for (const std::string& name : names) {
    const auto file = MappedFile::open(from / name);
    const Bytes bytes = file->bytes();
    write_file(name, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  }
  return names;
}

void CheckpointWriter::commit() {
  assert(!is_committed_);
  std::ranges::stable_sort(files_, {}, rank_of);
  std::error_code error;
  for (; moved_ < files_.size(); ++moved_) {
    const fs::path target = folder_ / files_[moved_];
    fs::rename(temporary_ / files_[moved_], target, error);
    require(!error, target.string(), ": must be writable, got: ", error.message());
  }
  fs::remove(temporary_, error);
  sync_folder(folder_);
  is_committed_ = true;
}

}  // namespace elapid
