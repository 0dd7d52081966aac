#include "elapid/core/error.h"
#include "elapid/model/families/family.h"

namespace elapid {
namespace {

// An explicit list: no registration at start-up, nothing a linker could drop.
constexpr const Family* kFamilies[] = {&kMamba2Family};

}  // namespace

const Family& find_family(std::string_view model_type, const std::string& what) {
  std::string known;
  for (const Family* family : kFamilies) {
    if (family->model_type == model_type) return *family;
    known += (known.empty() ? "" : ", ") + std::string(family->model_type);
  }
  fail(concat(what, ": model_type must be one of ", known, ", got ", model_type));
}

}  // namespace elapid
