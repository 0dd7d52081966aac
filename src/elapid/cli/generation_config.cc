#include "elapid/cli/generation_config.h"

#include "elapid/core/error.h"
#include "elapid/io/file.h"
#include "elapid/io/json.h"

#include <limits>

namespace elapid::cli {
namespace {

constexpr int64_t kFileLimit = int64_t{1} << 20;
constexpr int64_t kLargestId = std::numeric_limits<int32_t>::max();

// The keys of one file; null counts as absent.
struct Reader {
  const Json& json;
  const std::string& path;

  [[nodiscard]] const Json* find(const char* key) const {
    const auto found = json.find(key);
    return found == json.end() || found->is_null() ? nullptr : &*found;
  }
  [[nodiscard]] std::string name(const char* key) const { return concat(path, ": ", key); }

  [[nodiscard]] std::optional<double> real(const char* key, double max, bool zero_allowed) const {
    const Json* value = find(key);
    if (value == nullptr) return {};
    const double number = json_number(*value, name(key));
    require((zero_allowed ? number >= 0 : number > 0) && number <= max, name(key), " must be ",
            zero_allowed ? "at least 0" : "above 0", max == 1 ? " and at most 1" : " and finite", ", got ", number);
    return number;
  }
  [[nodiscard]] std::optional<int64_t> integer(const char* key) const {
    const Json* value = find(key);
    if (value == nullptr) return {};
    return json_integer(*value, name(key), 0, std::numeric_limits<int64_t>::max());
  }
};

}  // namespace

GenerationConfig load_generation_config(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "generation_config.json";
  std::error_code error;
  if (std::filesystem::symlink_status(path, error).type() == std::filesystem::file_type::not_found) return {};
  const std::string name = path.string();
  const Json json = parse_json(read_text_file(path, kFileLimit), name);
  require(json.is_object(), name, ": must be an object, got ", describe(json));
  const Reader reader{json, name};

  constexpr double kFinite = std::numeric_limits<double>::max();
  GenerationConfig config;
  config.temperature = reader.real("temperature", kFinite, true);
  config.top_p = reader.real("top_p", 1, true);
  config.min_p = reader.real("min_p", 1, true);
  config.repetition_penalty = reader.real("repetition_penalty", kFinite, false);
  config.top_k = reader.integer("top_k");
  config.max_new_tokens = reader.integer("max_new_tokens");
  if (const Json* value = reader.find("do_sample")) {
    require(value->is_boolean(), name, ": do_sample must be true or false, got ", describe(*value));
    config.do_sample = value->get<bool>();
  }
  if (const Json* value = reader.find("eos_token_id")) {
    config.eos_ids.emplace();
    const auto add = [&](const Json& id) {
      config.eos_ids->push_back(json_integer(id, reader.name("eos_token_id"), 0, kLargestId));
    };
    if (value->is_array()) {
      for (const Json& id : *value) add(id);
    } else {
      add(*value);
    }
  }
  return config;
}

}  // namespace elapid::cli
