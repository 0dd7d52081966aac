#include "elapid/model/families/names.h"

#include <initializer_list>

namespace elapid {
namespace {

void rename_all(NameTable& table, const std::string& ours, const std::string& theirs,
                std::initializer_list<const char*> parts) {
  for (const char* part : parts) table.rename(ours + part, theirs + part);
}

void name(NameTable& table, const Mamba2Config& c, const std::string& ours, const std::string& theirs) {
  rename_all(table, ours, theirs, {"in_proj.weight", "conv1d.weight", "A_log", "D", "dt_bias", "out_proj.weight"});
  if (c.gated_norm) table.rename(ours + "norm.weight", theirs + "norm.weight");
  if (c.conv_bias) table.rename(ours + "conv1d.bias", theirs + "conv1d.bias");
  if (c.proj_bias) rename_all(table, ours, theirs, {"in_proj.bias", "out_proj.bias"});
}

}  // namespace

void name_body(NameTable& table, const BodyConfig& body, const std::string& ours, const std::string& theirs) {
  std::visit(
      [&](const auto& c) {
        using Named = typename std::decay_t<decltype(c)>::Body;
        name(table, c, concat(ours, Named::kName, "."), theirs);
      },
      body);
}

}  // namespace elapid
