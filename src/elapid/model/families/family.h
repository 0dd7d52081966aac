#pragma once

// Family: how the checkpoints of one model_type map to blocks. Tables and checks only; a family computes nothing.

#include "elapid/io/json.h"
#include "elapid/model/config.h"

#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace elapid {

// Where (rows of) a parameter of ours stand in a checkpoint. Rules of one parameter give its rows one after another.
// Two parameters of equal rules are one in memory. Invertible: the same table names the tensors of a checkpoint that is
// written.
struct NameRule {
  std::string ours, theirs;
  // When only a part of the checkpoint's tensor is meant: its shape there, and which rows and columns, of the tensor as
  // a matrix (all leading dimensions together, by the last one; a vector is one column). No rank: all of it, in the
  // parameter's own shape.
  Shape shape{};
  int64_t row = 0, rows = 0, column = 0, columns = 0;
};

// Collects rules.
class NameTable {
 public:
  void rename(std::string ours, std::string theirs) { rules_.push_back({std::move(ours), std::move(theirs)}); }
  // All of the checkpoint's tensor, whose shape is `shape`, as the next rows of a parameter.
  void append(std::string ours, std::string theirs, Shape shape);
  // Rows [row, row + rows) of it.
  void rows(std::string ours, std::string theirs, Shape shape, int64_t row, int64_t rows);
  // Columns [column, column + columns) of a matrix.
  void columns(std::string ours, std::string theirs, Shape shape, int64_t column, int64_t columns);

  [[nodiscard]] std::vector<NameRule> take() { return std::move(rules_); }

 private:
  std::vector<NameRule> rules_;
};

struct Family {
  std::string_view model_type;
  ModelConfig (*config)(const Json& json, const std::string& what);
  NameTable (*names)(const ModelConfig& config);
  // Tensors that checkpoints of this family carry although nothing is computed with them; null: there are none.
  bool (*ignores)(std::string_view name) = nullptr;
};

extern const Family kBambaFamily, kFalconH1Family, kFalconMambaFamily, kGraniteMoeFamily, kGraniteMoeHybridFamily,
    kJambaFamily, kMamba2Family, kMambaFamily, kMambaSsmFamily, kMistralMambaFamily, kNemotronHFamily, kZamba2Family;

// An Error naming the known families when there is none of this name.
const Family& find_family(std::string_view model_type, const std::string& what);

}  // namespace elapid
