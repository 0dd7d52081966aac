#include "elapid/model/load.h"

#include "elapid/core/error.h"
#include "elapid/io/checkpoint.h"
#include "elapid/model/builder.h"
#include "elapid/model/families/family.h"
#include "elapid/model/fingerprint.h"

#include <cstring>
#include <map>
#include <set>

namespace elapid {
namespace {

constexpr std::string_view kHead = "head.weight", kEmbedding = "embedding.weight";
constexpr int64_t kConfigLimit = int64_t{16} << 20;

std::string shown(const Shape& shape) {
  std::string text = "[";
  for (int i = 0; i < shape.rank; ++i) text += concat(i == 0 ? "" : ", ", shape[i]);
  return text + "]";
}

bool same_bytes(const Tensor& a, const Tensor& b) {
  return a.dtype == b.dtype && a.shape == b.shape && std::memcmp(a.data, b.data, static_cast<size_t>(a.bytes())) == 0;
}

// A checkpoint may call its head tied and carry one all the same. Equal: tied it is. Different: what is in the file
// counts, as in transformers since release 5.
void untie_if_different(ModelConfig& config, const Checkpoint& weights,
                        const std::map<std::string, std::string>& names) {
  const std::string &head = names.at(std::string(kHead)), &embedding = names.at(std::string(kEmbedding));
  if (!config.tied_head || !weights.contains(head) || !weights.contains(embedding)) return;
  if (same_bytes(weights.at(head), weights.at(embedding))) return;
  config.tied_head = false;
  config.notes.push_back(concat("tie_word_embeddings is true, but ", head, " differs from ", embedding,
                                ": the head is the checkpoint's own"));
}

}  // namespace

ModelConfig load_config(const std::filesystem::path& folder) {
  require(std::filesystem::is_directory(folder), "load model: must be a folder, got ", folder.string());
  const std::filesystem::path path = folder / "config.json";
  return parse_config(read_text_file(path, kConfigLimit), path.string());
}

std::unique_ptr<Model> load_model(const std::filesystem::path& folder, ThreadPool& threads, const LoadOptions&) {
  ModelConfig config = load_config(folder);
  const auto weights = std::make_shared<const Checkpoint>(Checkpoint::open_folder(folder));
  std::map<std::string, std::string> names;
  for (const NameRule& rule : find_family(config.family, folder.string()).names(config)) {
    names.emplace(rule.ours, rule.theirs);
  }
  untie_if_different(config, *weights, names);

  std::set<std::string> used;
  if (config.tied_head) used.insert(names.at(std::string(kHead)));
  ModelBuilder builder(config, threads);
  builder.fill([&](const ParameterInfo& info, bool) {
    const std::string& name = names.at(info.name);
    const auto found = weights->entries().find(name);
    require(found != weights->entries().end(), "load model: ", folder.string(), " must have the tensor ", name,
            ", got none of that name");
    const Tensor& tensor = found->second.tensor;
    require(tensor.shape == info.shape, "load model: ", name, " must be ", shown(info.shape),
            " as config.json says, got ", shown(tensor.shape));
    used.insert(name);
    info.param->name = name;
    return ModelBuilder::Source{tensor, found->second.file};
  });
  for (const auto& [name, entry] : weights->entries()) {
    require(used.contains(name), "load model: every tensor must be one that ", config.family, " has, got ", name);
  }
  return builder.finish([weights, config] { return fingerprint_of(config, *weights); });
}

}  // namespace elapid
