#pragma once

// Family: how the checkpoints of one model_type map to blocks. Tables and checks only; a family computes nothing.

#include "elapid/io/json.h"
#include "elapid/model/config.h"

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace elapid {

// Invertible: the same table names the tensors of a checkpoint that is written.
struct NameRule {
  std::string ours, theirs;
};

struct Family {
  std::string_view model_type;
  ModelConfig (*config)(const Json& json, const std::string& what);
  std::vector<NameRule> (*names)(const ModelConfig& config);
};

extern const Family kMamba2Family;

// An Error naming the known families when there is none of this name.
const Family& find_family(std::string_view model_type, const std::string& what);

}  // namespace elapid
