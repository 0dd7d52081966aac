#include "elapid/model/checkpoint_rules.h"

#include "elapid/core/error.h"

#include <cstring>

namespace elapid {
namespace {

std::string shown(const Shape& shape) {
  std::string text = "[";
  for (int i = 0; i < shape.rank; ++i) text += concat(i == 0 ? "" : ", ", shape[i]);
  return text + "]";
}

bool same_bytes(const Tensor& a, const Tensor& b) {
  return a.dtype == b.dtype && a.shape == b.shape && std::memcmp(a.data, b.data, static_cast<size_t>(a.bytes())) == 0;
}

}  // namespace

CheckpointRules checkpoint_rules(const ModelConfig& config) {
  CheckpointRules rules;
  for (NameRule& rule : find_family(config.family, "checkpoint").names(config).take()) {
    rules[rule.ours].push_back(std::move(rule));
  }
  return rules;
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

void untie_if_different(ModelConfig& config, const Checkpoint& weights, const CheckpointRules& rules) {
  const std::string &head = rules.at(kHeadName).front().theirs, &embedding = rules.at(kEmbeddingName).front().theirs;
  if (!config.tied_head || !weights.contains(head) || !weights.contains(embedding)) return;
  if (same_bytes(weights.at(head), weights.at(embedding))) return;
  config.tied_head = false;
  config.notes.push_back(concat("tie_word_embeddings is true, but ", head, " differs from ", embedding,
                                ": the head is the checkpoint's own"));
}

}  // namespace elapid
