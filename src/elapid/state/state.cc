#include "elapid/state/state.h"

#include "elapid/core/error.h"
#include "elapid/core/hash.h"
#include "elapid/io/safetensors.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <set>
#include <sstream>

namespace elapid {
namespace {

constexpr std::string_view kFormat = "elapid.state";
constexpr std::string_view kVersion = "1";

constexpr size_t kPrefix = 6;  // "state."

std::string tensor_name(const StateEntry& entry) { return concat("state.", entry.layer, ".", entry.kind); }

// The inverse of tensor_name().
StateEntry entry_of(const std::string& name, const Shape& shape, const std::string& what) {
  const size_t dot = name.find('.', kPrefix);
  const bool well_formed = name.starts_with("state.") && dot != std::string::npos && dot > kPrefix &&
                           dot < kPrefix + 10 &&
                           std::all_of(name.begin() + kPrefix, name.begin() + static_cast<std::ptrdiff_t>(dot),
                                       [](char c) { return c >= '0' && c <= '9'; });
  require(well_formed, what, ": tensors must be named state.<layer>.<kind>, tokens or pending, got ", name);
  return {name.substr(dot + 1), std::stoll(name.substr(kPrefix, dot - kPrefix)), shape, StateExtent::fixed};
}

std::vector<TokenId> ids_of(const Safetensors& file, const std::string& name, const std::string& what) {
  const Tensor& tensor = file.at(name);
  require(tensor.dtype == DType::i64 && tensor.shape.rank == 1, what, ": ", name, " must be a list of i64, got ",
          name_of(tensor.dtype), " of rank ", tensor.shape.rank);
  std::vector<TokenId> ids(static_cast<size_t>(tensor.size()));
  for (size_t i = 0; i < ids.size(); ++i) {
    int64_t id;
    std::memcpy(&id, static_cast<const char*>(tensor.data) + i * sizeof id, sizeof id);
    require(id >= 0 && id <= std::numeric_limits<TokenId>::max(), what, ": ", name, " must hold token ids, got ", id);
    ids[i] = static_cast<TokenId>(id);
  }
  return ids;
}

// The metadata "length".
int64_t length_of(const std::string& text, const std::string& what) {
  const bool well_formed = !text.empty() && text.size() <= 15 &&
                           std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
  require(well_formed, what, ": length must be a number of tokens, got ", text);
  return std::stoll(text);
}

// The metadata "per_token": names separated by spaces.
std::set<std::string> names_in(const std::string& text) {
  std::set<std::string> names;
  std::istringstream in(text);
  for (std::string name; in >> name;) names.insert(name);
  return names;
}

}  // namespace

Shape State::with_tokens(int64_t tokens, const Shape& shape) {
  assert(shape.rank < kMaxRank);
  Shape with;
  with.rank = shape.rank + 1;
  with.dims[0] = tokens;
  std::copy_n(shape.dims, shape.rank, with.dims + 1);
  return with;
}

std::string State::checksum(const Data& data) {
  Hash hash;
  for (size_t i = 0; i < data.entries.size(); ++i) {
    hash.add(tensor_name(data.entries[i]));
    hash.add(data.tensors[i].data, static_cast<size_t>(data.tensors[i].bytes()));
  }
  hash.add(data.tokens.data(), data.tokens.size() * sizeof(TokenId));
  hash.add(data.pending.data(), data.pending.size() * sizeof(TokenId));
  return hash.hex();
}

void State::write(const std::filesystem::path& path) const {
  std::vector<NamedTensor> tensors;
  std::string per_token;
  for (size_t i = 0; i < data_->entries.size(); ++i) {
    tensors.push_back({tensor_name(data_->entries[i]), data_->tensors[i]});
    if (data_->entries[i].per_token()) {
      per_token += concat(per_token.empty() ? "" : " ", tensors.back().name.substr(kPrefix));
    }
  }
  std::vector<int64_t> tokens(data_->tokens.begin(), data_->tokens.end());
  std::vector<int64_t> pending(data_->pending.begin(), data_->pending.end());
  tensors.push_back({"tokens", Tensor(tokens.data(), DType::i64, {static_cast<int64_t>(tokens.size())})});
  tensors.push_back({"pending", Tensor(pending.data(), DType::i64, {static_cast<int64_t>(pending.size())})});
  std::map<std::string, std::string> metadata = {
      {"format", std::string(kFormat)},
      {"version", std::string(kVersion)},
      {"fingerprint", data_->spec ? data_->spec->fingerprint() : data_->fingerprint},
      {"dtype", "f32"},
      {"length", std::to_string(data_->length)},
      {"checksum", checksum(*data_)}};
  if (!per_token.empty()) metadata["per_token"] = per_token;
  write_safetensors(path, tensors, metadata);
}

State State::read(const std::filesystem::path& path) {
  const auto file = MappedFile::open(path);
  return parse(file->bytes(), path.string());
}

State State::parse(Bytes bytes, const std::string& what) {
  const Safetensors file = Safetensors::parse(bytes, what);
  const auto meta = [&](const std::string& key) {
    const auto found = file.metadata().find(key);
    return found == file.metadata().end() ? std::string("nothing") : found->second;
  };
  require(meta("format") == kFormat, what, ": must be a state file (format ", kFormat, "), got ", meta("format"));
  require(meta("version") == kVersion, what, ": state version must be ", kVersion, ", got ", meta("version"));
  require(meta("dtype") == "f32", what, ": state dtype must be f32, got ", meta("dtype"));

  auto data = std::make_shared<Data>();
  data->fingerprint = meta("fingerprint");
  data->tokens = ids_of(file, "tokens", what);
  data->pending = ids_of(file, "pending", what);
  const bool has_length = file.metadata().contains("length");
  const auto consumed = static_cast<int64_t>(data->tokens.size());
  data->length = has_length ? length_of(meta("length"), what) : consumed;
  // Whoever saves a state may keep the ids to himself, but not some of them.
  require(consumed == 0 || data->length == consumed, what, ": length must be that of tokens, ", consumed, ", got ",
          data->length);
  std::set<std::string> per_token;
  if (file.metadata().contains("per_token")) per_token = names_in(meta("per_token"));
  struct Found {
    StateEntry entry;
    Shape shape;  // in the file
    const void* bytes;
  };
  std::vector<Found> found;
  int64_t total = 0;
  for (const auto& [name, e] : file.entries()) {
    if (name == "tokens" || name == "pending") continue;
    require(e.tensor.dtype == DType::f32, what, ": ", name, " must be f32, got ", name_of(e.tensor.dtype));
    found.push_back({entry_of(name, e.tensor.shape, what), e.tensor.shape, e.tensor.data});
    if (per_token.erase(name.substr(kPrefix)) > 0) {
      StateEntry& entry = found.back().entry;
      require(entry.shape.rank >= 1 && entry.shape[0] == data->length, what, ": ", name, " must have ", data->length,
              " tokens, got ", entry.shape[0]);
      --entry.shape.rank;
      std::copy_n(e.tensor.shape.dims + 1, kMaxRank - 1, entry.shape.dims);
      entry.shape.dims[kMaxRank - 1] = 0;
      entry.extent = StateExtent::per_token;
    }
    total += e.tensor.bytes();
  }
  require(per_token.empty(), what, ": every tensor per token must be there, got no state.",
          per_token.empty() ? "" : *per_token.begin());
  std::stable_sort(found.begin(), found.end(), [](const Found& a, const Found& b) {
    return std::tie(a.entry.layer, a.entry.kind) < std::tie(b.entry.layer, b.entry.kind);
  });
  data->memory = Buffer(total);
  char* at = static_cast<char*>(data->memory.data());
  for (const Found& f : found) {
    const Tensor tensor(at, DType::f32, f.shape);
    if (tensor.bytes() > 0) std::memcpy(at, f.bytes, static_cast<size_t>(tensor.bytes()));
    at += tensor.bytes();
    data->entries.push_back(f.entry);
    data->tensors.push_back(tensor);
  }
  if (file.metadata().contains("checksum")) {
    const std::string actual = checksum(*data);
    require(meta("checksum") == actual, what, ": values must have the checksum ", meta("checksum"),
            " that they were written with, got ", actual);
  }
  return State(std::move(data));
}

bool State::operator==(const State& other) const {
  const Data &a = *data_, &b = *other.data_;
  if (a.entries != b.entries || a.length != b.length || a.tokens != b.tokens || a.pending != b.pending) return false;
  for (size_t i = 0; i < a.tensors.size(); ++i) {
    const auto bytes = static_cast<size_t>(a.tensors[i].bytes());
    if (bytes > 0 && std::memcmp(a.tensors[i].data, b.tensors[i].data, bytes) != 0) return false;
  }
  return true;
}

}  // namespace elapid
