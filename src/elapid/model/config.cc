#include "elapid/model/config.h"

#include "elapid/core/error.h"
#include "elapid/model/families/family.h"

namespace elapid {

ModelConfig parse_config(std::string_view text, const std::string& what) {
  const Json json = parse_json(text, what);
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

}  // namespace elapid
