#include "elapid/model/checkpoint_rules.h"

#include "elapid/core/error.h"
#include "elapid/model/quantization.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <string_view>

namespace elapid {
namespace {

// A few at a time, whose pages are given back: both tensors are large.
bool same_bytes(const StoredTensor& a, const StoredTensor& b) {
  constexpr size_t kAtOnce = size_t{8} << 20;
  if (a.tensor.dtype != b.tensor.dtype || !(a.tensor.shape == b.tensor.shape)) return false;
  if (a.tensor.data == b.tensor.data) return true;
  const auto size = static_cast<size_t>(a.tensor.bytes());
  bool same = true;
  for (size_t at = 0; same && at < size; at += kAtOnce) {
    const size_t count = std::min(kAtOnce, size - at);
    const Bytes left(static_cast<const std::byte*>(a.tensor.data) + at, count),
        right(static_cast<const std::byte*>(b.tensor.data) + at, count);
    same = std::memcmp(left.data(), right.data(), count) == 0;
    if (a.file) a.file->drop_pages(left);
    if (b.file) b.file->drop_pages(right);
  }
  return same;
}

}  // namespace

CheckpointRules checkpoint_rules(const ModelConfig& config) {
  CheckpointRules rules;
  for (NameRule& rule : find_family(config.family, "checkpoint").names(config).take()) {
    rules[rule.ours].push_back(std::move(rule));
  }
  return rules;
}

std::string shown(const Shape& shape) {
  std::string text = "[";
  for (int i = 0; i < shape.rank; ++i) text += concat(i == 0 ? "" : ", ", shape[i]);
  return text + "]";
}

Tensor as_matrix(const Tensor& t) {
  return t.shape.rank == 1 ? t.reshape({t.shape[0], 1}) : t.reshape({t.rows(), t.cols()});
}

Tensor part_of(const Tensor& tensor, const NameRule& rule, const Shape& whole) {
  const Shape& shape = rule.shape.rank == 0 ? whole : rule.shape;
  require(tensor.shape == shape, "load model: ", rule.theirs, " must be ", shown(shape), " as config.json says, got ",
          shown(tensor.shape));
  const Tensor matrix = as_matrix(tensor);
  if (rule.shape.rank == 0) return matrix;
  return matrix.slice(rule.row, rule.row + rule.rows).columns(rule.column, rule.column + rule.columns);
}

void check_tensors(const ModelConfig& config, const Checkpoint& weights, const CheckpointRules& rules,
                   const std::string& what) {
  const Family& family = find_family(config.family, what);
  std::set<std::string_view> read;
  for (const auto& [ours, parts] : rules) {
    for (const NameRule& rule : parts) read.insert(rule.theirs);
  }
  for (const auto& [name, entry] : weights.entries()) {
    // What modules keep beside their weights and compute anew: earlier releases saved these buffers, too.
    const bool buffer = name.ends_with(".inv_freq") || name.ends_with(".num_batches_tracked");
    const std::string_view matrix = config.quantization ? coded_matrix_of(*config.quantization, name) : name;
    require(read.contains(name) || (read.contains(matrix) && weights.contains(std::string(matrix))) || buffer ||
                (family.ignores != nullptr && family.ignores(name)),
            what, ": every tensor must be one that ", config.family, " has, got ", name);
  }
}

void untie_if_different(ModelConfig& config, const Checkpoint& weights, const CheckpointRules& rules) {
  const std::string &head = rules.at(kHeadName).front().theirs, &embedding = rules.at(kEmbeddingName).front().theirs;
  if (!config.tied_head || !weights.contains(head) || !weights.contains(embedding)) return;
  if (same_bytes(weights.entries().at(head), weights.entries().at(embedding))) return;
  config.tied_head = false;
  config.notes.push_back(concat("tie_word_embeddings is true, but ", head, " differs from ", embedding,
                                ": the head is the checkpoint's own"));
}

}  // namespace elapid
