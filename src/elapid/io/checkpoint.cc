#include "elapid/io/checkpoint.h"

#include "elapid/core/error.h"
#include "elapid/io/json.h"
#include "elapid/io/safetensors.h"
#include "elapid/io/torch_file.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <system_error>

namespace elapid {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxIndex = 100'000'000;

StoredTensors read_safetensors(const fs::path& path) { return Safetensors::open(path).entries(); }

struct Form {
  const char* file;
  StoredTensors (*read)(const fs::path& path);
};
constexpr Form kConsolidated = {"consolidated.safetensors", read_safetensors};
constexpr std::array kForms = {Form{"model.safetensors", read_safetensors}, Form{"pytorch_model.bin", read_torch_file},
                               kConsolidated};

std::string index_of(const Form& form) { return std::string(form.file) + ".index.json"; }

// A link that leads nowhere counts as present: opening it says what is wrong with it.
bool is_present(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(fs::symlink_status(path, ignored));
}

// Where an error happened: the file, and the tensor in it.
std::string place_of(const fs::path& file, const std::string& tensor) {
  return concat(file.string(), ": tensor ", quote(tensor));
}

// The shard of every tensor, by the index of a folder.
std::map<std::string, std::string> parse_weight_map(const fs::path& index) {
  const std::string what = index.string();
  const Json json = parse_json(read_text_file(index, kMaxIndex), what);
  require(json.is_object(), what, ": must be an object, got ", describe(json));
  const auto weight_map = json.find("weight_map");
  require(weight_map != json.end() && weight_map->is_object(), what, ": weight_map must be an object, got ",
          weight_map == json.end() ? "none" : describe(*weight_map));
  std::map<std::string, std::string> result;
  for (const auto& [tensor, shard] : weight_map->items()) {
    const std::string place = place_of(what, tensor);
    require(shard.is_string(), place, ": its shard must be a string, got ", describe(shard));
    const auto& name = shard.get_ref<const std::string&>();
    const bool is_plain = !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
                          name.find('\0') == std::string::npos;
    require(is_plain, place, ": its shard must be a plain file name, got ", quote(name));
    result.emplace(tensor, name);
  }
  return result;
}

StoredTensors read_indexed(const fs::path& folder, const Form& form) {
  const fs::path index = folder / index_of(form);
  const std::map<std::string, std::string> weight_map = parse_weight_map(index);
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : weight_map) shards.insert(shard);
  StoredTensors result;
  for (const std::string& shard : shards) {
    const fs::path path = folder / shard;
    require(is_present(path), index.string(), ": every shard must be beside it, got no ", quote(shard));
    for (const auto& [tensor, entry] : form.read(path)) {
      const auto listed = weight_map.find(tensor);
      require(listed != weight_map.end(), place_of(path, tensor), ": must be listed in ", index.string(),
              ", got no entry");
      require(listed->second == shard, place_of(path, tensor), ": must be in the shard that ", index.string(),
              " says (", quote(listed->second), "), got it in ", quote(shard));
      result.emplace(tensor, entry);
    }
  }
  for (const auto& [tensor, shard] : weight_map) {
    require(result.contains(tensor), place_of(folder / shard, tensor), ": must be there as ", index.string(),
            " says, got no such tensor");
  }
  return result;
}

// Two numbers, "consolidated-00001-of-00003.safetensors": which one, and of how many.
struct ShardNumber {
  int64_t index, count;
};
std::optional<ShardNumber> parse_shard_name(std::string_view name) {
  constexpr std::string_view kBefore = "consolidated-", kBetween = "-of-", kAfter = ".safetensors";
  if (!name.starts_with(kBefore) || !name.ends_with(kAfter)) return std::nullopt;
  const std::string_view numbers = name.substr(kBefore.size(), name.size() - kBefore.size() - kAfter.size());
  const char* const end = numbers.data() + numbers.size();
  ShardNumber shard{};
  const auto first = std::from_chars(numbers.data(), end, shard.index);
  if (first.ec != std::errc() || !std::string_view(first.ptr, end).starts_with(kBetween)) return std::nullopt;
  const auto second = std::from_chars(first.ptr + kBetween.size(), end, shard.count);
  if (second.ec != std::errc() || second.ptr != end) return std::nullopt;
  return shard;
}

// Shards without an index say themselves how many they are. Empty when there are none.
std::optional<StoredTensors> read_numbered(const fs::path& folder) {
  std::map<std::string, ShardNumber> shards;
  std::error_code error;
  for (fs::directory_iterator file(folder, error), end; !error && file != end; file.increment(error)) {
    const std::string name = file->path().filename().string();
    if (const auto shard = parse_shard_name(name)) shards.emplace(name, *shard);
  }
  if (error || shards.empty()) return std::nullopt;
  std::set<int64_t> present;
  const int64_t count = shards.begin()->second.count;
  for (const auto& [name, shard] : shards) {
    require(shard.count == count && shard.index >= 1 && shard.index <= count && present.insert(shard.index).second,
            folder.string(), ": shards must be 1 to ", count, " of ", count, ", each once, got ", quote(name));
  }
  require(std::ssize(present) == count, folder.string(), ": must have all ", count, " shards of ",
          quote(shards.begin()->first), ", got ", present.size());
  StoredTensors result;
  for (const auto& [name, shard] : shards) {
    for (const auto& [tensor, entry] : kConsolidated.read(folder / name)) {
      require(result.emplace(tensor, entry).second, place_of(folder / name, tensor),
              ": must be in one shard, got it in two");
    }
  }
  return result;
}

}  // namespace

Checkpoint Checkpoint::open_folder(const fs::path& folder) {
  for (const Form& form : kForms) {
    if (is_present(folder / form.file)) return {(folder / form.file).string(), form.read(folder / form.file)};
    if (is_present(folder / index_of(form))) return {folder.string(), read_indexed(folder, form)};
  }
  if (auto shards = read_numbered(folder)) return {folder.string(), std::move(*shards)};
  fail(concat(folder.string(),
              ": must be a folder with model.safetensors, pytorch_model.bin or consolidated.safetensors, whole or in "
              "shards with an .index.json, got none of them"));
}

const Tensor& Checkpoint::at(const std::string& name) const {
  const auto entry = entries_.find(name);
  require(entry != entries_.end(), place_of(what_, name), ": must be present, got no such tensor");
  return entry->second.tensor;
}

}  // namespace elapid
