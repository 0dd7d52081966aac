#include "elapid/model/config.h"

#include "elapid/core/error.h"
#include "elapid/model/families/family.h"

namespace elapid {
namespace {

// An expert has names and parameters of its own before any tensor is looked at. The largest published models have some
// 20,000 in all layers together.
constexpr int64_t kMostExperts = 1 << 17;

ModelConfig read(const Json& json, const std::string& what) {
  require(json.is_object(), what, ": must be a JSON object, got ", json.type_name());
  const auto type = json.find("model_type");
  // The original state-spaces configurations name no type.
  if (type == json.end() && json.contains("d_model") && json.contains("n_layer")) {
    return kMambaSsmFamily.config(json, what);
  }
  require(type != json.end() && type->is_string(), what, ": must name its model_type, got ",
          type == json.end() ? "nothing" : type->type_name());
  return find_family(type->get<std::string>(), what).config(json, what);
}

}  // namespace

std::string_view name_of(Quantization::Method method) {
  return method == Quantization::Method::elapid ? "elapid" : "bitsandbytes";
}

ModelConfig parse_config(std::string_view text, const std::string& what) {
  ModelConfig config = read(parse_json(text, what), what);
  int64_t layers = 0, experts = 0;  // a layer has at most Moe::kMostExperts
  for (const BlockConfig& block : config.blocks) {
    for (const BodyUse& use : block.bodies) {
      const auto* moe = std::get_if<MoeConfig>(&use.config);
      if (moe == nullptr) continue;
      ++layers;
      experts += moe->experts;
    }
  }
  require(experts <= kMostExperts, what, ": all layers together must have at most ", kMostExperts, " experts, got ",
          experts, " in ", layers, " layers");
  return config;
}

}  // namespace elapid
