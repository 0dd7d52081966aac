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

using Rules = std::map<std::string, std::vector<NameRule>>;  // of each parameter

const std::string kHead = "head.weight", kEmbedding = "embedding.weight";
constexpr int64_t kConfigLimit = int64_t{16} << 20;

std::string shown(const Shape& shape) {
  std::string text = "[";
  for (int i = 0; i < shape.rank; ++i) text += concat(i == 0 ? "" : ", ", shape[i]);
  return text + "]";
}

bool same_bytes(const Tensor& a, const Tensor& b) {
  return a.dtype == b.dtype && a.shape == b.shape && std::memcmp(a.data, b.data, static_cast<size_t>(a.bytes())) == 0;
}

// The rows of a checkpoint's tensor that a rule means, as a matrix.
Tensor part_of(const Tensor& tensor, const NameRule& rule, const Shape& whole) {
  const Shape& shape = rule.shape.rank == 0 ? whole : rule.shape;
  require(tensor.shape == shape, "load model: ", rule.theirs, " must be ", shown(shape), " as config.json says, got ",
          shown(tensor.shape));
  const Tensor matrix = as_matrix(tensor);
  if (rule.shape.rank == 0) return matrix;
  return matrix.slice(rule.row, rule.row + rule.rows).columns(rule.column, rule.column + rule.columns);
}

// A checkpoint may call its head tied and carry one all the same. Equal: tied it is. Different: what is in the file
// counts, as in transformers since release 5.
void untie_if_different(ModelConfig& config, const Checkpoint& weights, const Rules& rules) {
  const std::string &head = rules.at(kHead).front().theirs, &embedding = rules.at(kEmbedding).front().theirs;
  if (!config.tied_head || !weights.contains(head) || !weights.contains(embedding)) return;
  if (same_bytes(weights.at(head), weights.at(embedding))) return;
  config.tied_head = false;
  config.notes.push_back(concat("tie_word_embeddings is true, but ", head, " differs from ", embedding,
                                ": the head is the checkpoint's own"));
}

}  // namespace

ModelConfig load_config(const std::filesystem::path& folder) {
  require(is_folder(folder), "load model: must be a folder, got ", folder.string());
  const std::filesystem::path path = folder / "config.json";
  return parse_config(read_text_file(path, kConfigLimit), path.string());
}

std::unique_ptr<Model> load_model(const std::filesystem::path& folder, ThreadPool& threads) {
  ModelConfig config = load_config(folder);
  const auto weights = std::make_shared<const Checkpoint>(Checkpoint::open_folder(folder));
  const Family& family = find_family(config.family, folder.string());
  Rules rules;
  for (NameRule& rule : family.names(config).take()) rules[rule.ours].push_back(std::move(rule));
  untie_if_different(config, *weights, rules);

  std::set<std::string, std::less<>> used;
  if (config.tied_head) used.insert(rules.at(kHead).front().theirs);
  ModelBuilder builder(config, threads);
  builder.fill([&](const ParameterInfo& info, bool) {
    ModelBuilder::Source source;
    for (const NameRule& rule : rules.at(info.name)) {
      const auto found = weights->entries().find(rule.theirs);
      require(found != weights->entries().end(), "load model: ", folder.string(), " must have the tensor ", rule.theirs,
              ", got none of that name");
      used.insert(rule.theirs);
      source.parts.push_back({part_of(found->second.tensor, rule, info.shape), found->second.file});
      source.key += concat(rule.theirs, '[', rule.row, ',', rule.column, ']');
    }
    info.param->name = rules.at(info.name).front().theirs;
    return source;
  });
  for (const auto& [name, entry] : weights->entries()) {
    require(used.contains(name) || (family.ignores != nullptr && family.ignores(name)),
            "load model: every tensor must be one that ", config.family, " has, got ", name);
  }
  return builder.finish([weights, config] { return fingerprint_of(config, *weights); });
}

}  // namespace elapid
