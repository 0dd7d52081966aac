#include "elapid/model/load.h"

#include "elapid/core/error.h"
#include "elapid/io/checkpoint.h"
#include "elapid/model/builder.h"
#include "elapid/model/checkpoint_rules.h"
#include "elapid/model/families/family.h"
#include "elapid/model/fingerprint.h"
#include "elapid/model/packed_cache.h"
#include "elapid/model/quantization.h"

#include <cstring>
#include <map>
#include <string_view>

namespace elapid {
namespace {

constexpr int64_t kConfigLimit = int64_t{16} << 20;

// Where it makes a difference, n_groups > 1, original checkpoints norm per group and transformers' Mamba2 class over
// the whole width. A folder with Mistral's params.json was trained per group, even when its config.json names that
// class.
void choose_gated_norm(ModelConfig& config, bool trained_per_group, const std::optional<GatedNorm>& asked) {
  bool matters = false, per_group = false;
  for (BlockConfig& block : config.blocks) {
    for (BodyUse& use : block.bodies) {
      auto* mixer = std::get_if<Mamba2Config>(&use.config);
      if (mixer == nullptr || mixer->groups == 1 || !mixer->gated_norm) continue;
      if (asked || trained_per_group) {
        mixer->norm_groups = asked.value_or(GatedNorm::group) == GatedNorm::group ? mixer->groups : 1;
      }
      matters = true;
      per_group = mixer->norm_groups > 1;
    }
  }
  if (!matters) return;
  config.notes.push_back(concat("the gated norm ", per_group ? "works per group" : "covers the whole width",
                                asked       ? ", as asked"
                                : per_group ? ", as this checkpoint was trained"
                                            : ", as in transformers' class"));
}

// What the matrices of a quantized folder are held in. Rounded a second time, they would lose more than the type says.
std::optional<Precision> precision_for(const ModelConfig& config, const std::filesystem::path& folder,
                                       std::optional<Precision> asked) {
  if (!config.quantization || config.quantization->method != Quantization::Method::elapid) return asked;
  const Precision stored = config.quantization->bits == 8 ? Precision::int8 : Precision::int4;
  require(!asked || *asked == stored || *asked <= Precision::bf16, "load model: ", folder.string(), " is stored in ",
          name_of(stored), " and must be loaded as that, as bf16 or as f32, got ", name_of(asked.value_or(stored)));
  return asked.value_or(stored);
}

bool holds(const std::filesystem::path& folder, const char* file) {
  std::error_code ignored;
  return std::filesystem::symlink_status(folder / file, ignored).type() != std::filesystem::file_type::not_found;
}

}  // namespace

ModelConfig load_config(const std::filesystem::path& folder, const LoadOptions& options) {
  require(is_folder(folder), "load model: must be a folder, got ", folder.string());
  const bool mistral = holds(folder, "params.json");
  // Mistral's names, unless the folder has weights and a configuration in transformers' layout as well.
  const bool mistral_weights =
      mistral && !holds(folder, "pytorch_model.bin") && !holds(folder, "pytorch_model.bin.index.json") &&
      (!holds(folder, "config.json") ||
       (!holds(folder, "model.safetensors") && !holds(folder, "model.safetensors.index.json")));
  const std::filesystem::path path = folder / (mistral_weights ? "params.json" : "config.json");
  const std::string text = read_text_file(path, kConfigLimit);
  ModelConfig config = mistral_weights ? kMistralMambaFamily.config(parse_json(text, path.string()), path.string())
                                       : parse_config(text, path.string());
  choose_gated_norm(config, mistral, options.gated_norm);
  if (config.quantization) {
    config.notes.push_back(concat("matrices are stored in ", config.quantization->bits, " bits, ",
                                  config.quantization->code, ", by ", name_of(config.quantization->method)));
  }
  return config;
}

std::unique_ptr<Model> load_model(const std::filesystem::path& folder, ThreadPool& threads,
                                  const LoadOptions& options) {
  ModelConfig config = load_config(folder, options);
  const auto weights = std::make_shared<const Checkpoint>(Checkpoint::open_folder(folder));
  const CheckpointRules rules = checkpoint_rules(config);
  untie_if_different(config, *weights, rules);

  check_tensors(config, *weights, rules, "load model");
  const std::optional<Precision> precision = precision_for(config, folder, options.precision);
  ModelBuilder builder(config, threads, precision, options.device);
  std::optional<PackedCache> cache;
  if (options.packed_cache) cache.emplace(*options.packed_cache, *weights, precision);
  std::optional<std::string> to_keep;  // the layout of what the cache lacks
  const auto find_packed = [&](const std::string& layout, int64_t bytes) {
    ModelBuilder::Packed found;
    if (cache) found = cache->find(layout, bytes, options.verify_packed);
    if (cache && !found.file) to_keep = layout;
    return found;
  };
  const auto find = [&](const ParameterInfo& info, bool values) {
    ModelBuilder::Source source;
    for (const NameRule& rule : rules.at(info.name)) {
      const auto found = weights->entries().find(rule.theirs);
      require(found != weights->entries().end(), "load model: ", folder.string(), " must have the tensor ", rule.theirs,
              ", got none of that name");
      const auto coded =
          config.quantization ? coded_part(*config.quantization, *weights, rule, info.shape, values) : nullptr;
      source.parts.push_back(
          {coded ? Tensor(nullptr, coded->dtype, coded->shape) : part_of(found->second.tensor, rule, info.shape),
           found->second.file, coded});
      source.key += concat(rule.theirs, '[', rule.row, ',', rule.column, ']');
    }
    info.param->name = rules.at(info.name).front().theirs;
    return source;
  };
  builder.fill(find, find_packed);
  if (options.packed_cache && on_cuda(options.device)) {
    builder.note("--packed-cache has no effect on cuda, where weights are not packed");
  }
  if (to_keep) {
    try {
      cache->keep(*to_keep, builder.memory());
    } catch (const Error& error) {
      builder.note(concat("packed weights are not kept: ", error.what()));
    }
  }
  return builder.finish([weights, config] { return fingerprint_of(config, *weights); });
}

}  // namespace elapid
