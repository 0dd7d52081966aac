#pragma once

// A family's names applied to a checkpoint: what loading and converting share.

#include "elapid/io/checkpoint.h"
#include "elapid/model/families/family.h"

#include <map>
#include <string>
#include <vector>

namespace elapid {

inline const std::string kHeadName = "head.weight", kEmbeddingName = "embedding.weight";

// Where each parameter, by our name, stands in the checkpoint.
using CheckpointRules = std::map<std::string, std::vector<NameRule>>;
CheckpointRules checkpoint_rules(const ModelConfig& config);

// The rows of a checkpoint's tensor that a rule means, as a matrix; `whole` is the parameter's shape. An Error when the
// tensor has another shape than the configuration implies.
Tensor part_of(const Tensor& tensor, const NameRule& rule, const Shape& whole);

// An Error, for `what`, that names a tensor which no rule reads, unless it is a buffer that modules compute anew or one
// that the family ignores.
void check_tensors(const ModelConfig& config, const Checkpoint& weights, const CheckpointRules& rules,
                   const std::string& what);

// A checkpoint may call its head tied and carry one all the same. Equal: tied it is. Different: what is in the file
// counts, as in transformers since release 5.
void untie_if_different(ModelConfig& config, const Checkpoint& weights, const CheckpointRules& rules);

// "[3, 4]"
std::string shown(const Shape& shape);

// A checkpoint tensor as a matrix: all leading dimensions together, by the last one; a vector is one column.
Tensor as_matrix(const Tensor& t);

}  // namespace elapid
