#include "elapid/core/error.h"
#include "elapid/model/families/family.h"

namespace elapid {
namespace {

// An explicit list: no registration at start-up, nothing a linker could drop.
constexpr const Family* kFamilies[] = {
    &kBambaFamily,     &kFalconH1Family, &kFalconMambaFamily, &kGraniteMoeFamily, &kGraniteMoeHybridFamily,
    &kJambaFamily,     &kMamba2Family,   &kMambaFamily,       &kMambaSsmFamily,   &kMistralMambaFamily,
    &kNemotronHFamily, &kZamba2Family};

}  // namespace

void NameTable::append(std::string ours, std::string theirs, Shape shape) {
  rows(std::move(ours), std::move(theirs), shape, 0, shape.rank == 1 ? shape[0] : shape.size() / shape[shape.rank - 1]);
}

void NameTable::rows(std::string ours, std::string theirs, Shape shape, int64_t row, int64_t rows) {
  rules_.push_back(
      {std::move(ours), std::move(theirs), shape, row, rows, 0, shape.rank == 1 ? 1 : shape[shape.rank - 1]});
}

void NameTable::columns(std::string ours, std::string theirs, Shape shape, int64_t column, int64_t columns) {
  rules_.push_back({std::move(ours), std::move(theirs), shape, 0, shape[0], column, columns});
}

const Family& find_family(std::string_view model_type, const std::string& what) {
  std::string known;
  for (const Family* family : kFamilies) {
    if (family->model_type == model_type) return *family;
    known += (known.empty() ? "" : ", ") + std::string(family->model_type);
  }
  fail(concat(what, ": model_type must be one of ", known, ", got ", model_type));
}

}  // namespace elapid
