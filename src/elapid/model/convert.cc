#include "elapid/model/convert.h"

#include "elapid/core/error.h"
#include "elapid/io/checkpoint.h"
#include "elapid/io/checkpoint_writer.h"
#include "elapid/model/checkpoint_rules.h"
#include "elapid/model/families/config_reader.h"
#include "elapid/model/families/family.h"

#include <algorithm>
#include <cstring>

namespace elapid {
namespace {

constexpr int64_t kConfigLimit = int64_t{16} << 20;

template <class Config>
bool all_blocks_are(const ModelConfig& config) {
  return std::all_of(config.blocks.begin(), config.blocks.end(), [](const BlockConfig& block) {
    return block.bodies.size() == 1 && std::holds_alternative<Config>(block.bodies.front().config);
  });
}

Json common_json(const ModelConfig& config, const Family& family, const char* architecture, DType dtype) {
  Json json = {{"model_type", family.model_type},
               {"architectures", {architecture}},
               {"vocab_size", config.vocab},
               {"hidden_size", config.d_model},
               {"num_hidden_layers", config.layers()},
               {"tie_word_embeddings", config.tied_head},
               {"dtype", dtype == DType::bf16  ? "bfloat16"
                         : dtype == DType::f16 ? "float16"
                                               : "float32"}};
  json["layer_norm_epsilon"] = std::stod(concat(config.norm.eps));  // 1e-05, not the float32's 9.99999974e-06
  // transformers has no word for rows without an id; it keeps keys that it does not know.
  if (config.tokens > 0 && config.tokens < config.vocab) json[ConfigReader::kTokens] = config.tokens;
  if (config.eos_ids.size() == 1) {
    json["eos_token_id"] = config.eos_ids.front();
  } else if (!config.eos_ids.empty()) {
    json["eos_token_id"] = config.eos_ids;
  }
  return json;
}

// Whether both gated norms cover the same, in every layer of one checkpoint.
bool same_gated_norms(const ModelConfig& a, const ModelConfig& b) {
  for (size_t i = 0; i < a.blocks.size(); ++i) {
    for (size_t j = 0; j < a.blocks[i].bodies.size(); ++j) {
      const auto *one = std::get_if<Mamba2Config>(&a.blocks[i].bodies[j].config),
                 *other = std::get_if<Mamba2Config>(&b.blocks[i].bodies[j].config);
      if (one != nullptr && one->norm_groups != other->norm_groups) return false;
    }
  }
  return true;
}

// transformers' class for a checkpoint that no class computes under its own names, and its configuration.
struct Target {
  const Family* family;
  Json config;
};

Target target_of(const ModelConfig& config, DType dtype) {
  const std::string_view none = "convert: a class of transformers must compute this model, got ";
  require(config.norm.kind == NormKind::rms, none, "LayerNorm");
  if (all_blocks_are<Mamba1Config>(config)) {
    const auto& m = std::get<Mamba1Config>(config.blocks.front().bodies.front().config);
    Json json = common_json(config, kMambaFamily, "MambaForCausalLM", dtype);
    json.update({{"state_size", m.d_state},
                 {"conv_kernel", m.d_conv},
                 {"expand", m.d_inner / config.d_model},
                 {"intermediate_size", m.d_inner},
                 {"time_step_rank", m.dt_rank},
                 {"use_bias", m.proj_bias},
                 {"use_conv_bias", m.conv_bias}});
    return {&kMambaFamily, std::move(json)};
  }
  require(all_blocks_are<Mamba2Config>(config), none, "layers of attention or an MLP beside the mixers");
  const auto& m = std::get<Mamba2Config>(config.blocks.front().bodies.front().config);
  require(m.gated_norm && !m.norm_before_gate && !m.d_per_channel, none,
          "a mixer without the gated norm, with the norm before the gate, or with D per channel");
  require(m.norm_eps == config.norm.eps, none, "a gated norm with an epsilon of its own, ", m.norm_eps);
  const bool whole = m.norm_groups == 1;
  require(!whole || m.d_inner() % config.d_model == 0, none, "a gated norm over the whole width, ", m.d_inner(),
          ", that is no multiple of ", config.d_model);
  const Family& family = whole ? kMamba2Family : kNemotronHFamily;
  Json json = common_json(config, family, whole ? "Mamba2ForCausalLM" : "NemotronHForCausalLM", dtype);
  json.update({{"conv_kernel", m.d_conv},
               {"expand", m.d_inner() / config.d_model},
               {"n_groups", m.groups},
               {"use_bias", m.in_bias},
               {"use_conv_bias", m.conv_bias}});
  if (whole) {
    json.update({{"state_size", m.d_state}, {"num_heads", m.heads}, {"head_dim", m.head_dim}, {"rms_norm", true}});
    json["time_step_limit"] = {m.dt_min, m.dt_max};
    if (std::isinf(m.dt_max)) json["time_step_limit"][1] = {{"__float__", "Infinity"}};
    return {&family, std::move(json)};
  }
  // A norm per group is what Nemotron-H's mixers have; a model of those alone is one, too. Its class knows no largest
  // time step, and takes time_step_min for the smallest, which must have a logarithm.
  require(std::isinf(m.dt_max), none, "a norm per group and a largest time step, ", m.dt_max);
  json.update({{"ssm_state_size", m.d_state},
               {"mamba_num_heads", m.heads},
               {"mamba_head_dim", m.head_dim},
               {"time_step_min", std::max(m.dt_min, 1e-30f)}});
  json["layers_block_type"] = std::vector<std::string>(static_cast<size_t>(config.layers()), "linear_attention");
  // The class has no tied head, and asks its cache for an attention layer.
  json["tie_word_embeddings"] = json["use_cache"] = false;
  return {&family, std::move(json)};
}

// One tensor of the target, put together from parts of the source's.
class Assembler {
 public:
  Assembler(const Checkpoint& weights, CheckpointRules source, CheckpointRules target)
      : weights_(weights), source_(std::move(source)), target_(std::move(target)) {}

  // What is to be written: every tensor that the target's rules name, in the order of the parameters.
  std::vector<TensorInfo> tensors(Model& model) {
    std::vector<TensorInfo> all;
    model.visit([&](const ParameterInfo& info) {
      const DType dtype = weights_.at(source_.at(info.name).front().theirs).dtype;
      int64_t row = 0;
      for (const NameRule& rule : target_.at(info.name)) {
        Pieces& pieces = pieces_[rule.theirs];
        if (pieces.parts.empty()) {
          pieces.info = {rule.theirs, dtype, rule.shape.rank == 0 ? info.shape : rule.shape};
          all.push_back(pieces.info);
        }
        pieces.parts.push_back({info.name, info.shape, rule, row});
        row += rule.rows;
      }
    });
    return all;
  }

  Tensor operator()(const TensorInfo& info) {
    const Pieces& pieces = pieces_.at(info.name);
    const Piece& first = pieces.parts.front();
    const std::vector<NameRule>& from = source_.at(first.ours);
    // A rename needs no copy.
    if (first.rule.shape.rank == 0 && from.size() == 1 && from.front().shape.rank == 0) {
      return weights_.at(from.front().theirs);
    }
    memory_ = Buffer(info.shape.size() * size_of(info.dtype));
    const Tensor whole(memory_.data(), info.dtype, info.shape), target = as_matrix(whole);
    for (const Piece& piece : pieces.parts) copy(piece, target);
    return whole;
  }

 private:
  struct Piece {
    std::string ours;
    Shape shape;
    NameRule rule;
    int64_t row;  // of ours where the rule's rows begin
  };
  struct Pieces {
    TensorInfo info;
    std::vector<Piece> parts;
  };

  void copy(const Piece& piece, const Tensor& target) const {
    const bool whole = piece.rule.shape.rank == 0;
    const Tensor to = whole ? target
                            : target.slice(piece.rule.row, piece.rule.row + piece.rule.rows)
                                  .columns(piece.rule.column, piece.rule.column + piece.rule.columns);
    int64_t row = -piece.row;  // of `to`, where the source's part begins
    for (const NameRule& rule : source_.at(piece.ours)) {
      const Tensor from = part_of(weights_.at(rule.theirs), rule, piece.shape);
      require(from.dtype == to.dtype, "convert: all parts of ", piece.rule.theirs, " must be of one element type, got ",
              name_of(from.dtype), " and ", name_of(to.dtype));
      for (int64_t r = 0; r < from.shape[0]; ++r, ++row) {
        if (row < 0 || row >= to.shape[0]) continue;
        const auto bytes = static_cast<size_t>(to.shape[1] * size_of(to.dtype));
        std::memcpy(to.slice(row, row + 1).data, from.slice(r, r + 1).data, bytes);
      }
    }
  }

  const Checkpoint& weights_;
  CheckpointRules source_, target_;
  std::map<std::string, Pieces> pieces_;
  Buffer memory_;
};

}  // namespace

Conversion convert_checkpoint(const std::filesystem::path& folder, const std::filesystem::path& output,
                              const ConvertOptions& options) {
  const Checkpoint weights = Checkpoint::open_folder(folder);
  ModelConfig config = load_config(folder, options.load);
  require(!config.quantization, "convert: ", folder.string(), " must hold weights that are not quantized, got ",
          config.quantization ? config.quantization->code : "", " by ",
          config.quantization ? name_of(config.quantization->method) : "");
  CheckpointRules source = checkpoint_rules(config);
  untie_if_different(config, weights, source);
  check_tensors(config, weights, source, "convert");
  const bool original = config.family == kMambaSsmFamily.model_type || config.family == kMistralMambaFamily.model_type;
  const std::filesystem::path path = folder / "config.json";
  const std::string text = original ? "" : read_text_file(path, kConfigLimit);
  // The class that config.json names may compute another norm than this checkpoint was trained with, or than was asked.
  const bool keeps_class = !original && same_gated_norms(config, parse_config(text, path.string()));

  Conversion done;
  CheckpointWriter writer(output);
  std::vector<TensorInfo> tensors;
  if (!keeps_class) {
    const DType dtype = weights.at(source.at(kEmbeddingName).front().theirs).dtype;
    Target target = target_of(config, dtype);
    done.family = target.family->model_type;
    ModelConfig renamed = config;
    renamed.family = done.family;
    if (config.tied_head && !target.config["tie_word_embeddings"].get<bool>()) {
      renamed.tied_head = false;
      source[kHeadName] = source[kEmbeddingName];
    }
    Model model(renamed);
    Assembler assemble(weights, std::move(source), checkpoint_rules(renamed));
    tensors = assemble.tensors(model);
    writer.write_tensors(
        tensors, [&](const TensorInfo& info) { return assemble(info); }, options.max_shard_bytes);
    writer.write_file("config.json", target.config.dump(2) + "\n");
  } else {
    // Already transformers' own names: only the form of the file may be another.
    done.family = config.family;
    for (const auto& [name, entry] : weights.entries()) {
      const bool repeated = config.tied_head && name == source.at(kHeadName).front().theirs;
      if (!repeated) tensors.push_back({name, entry.tensor.dtype, entry.tensor.shape});
    }
    writer.write_tensors(
        tensors, [&](const TensorInfo& info) { return weights.at(info.name); }, options.max_shard_bytes);
    Json json = parse_json(text, path.string());
    json["tie_word_embeddings"] = config.tied_head;
    writer.write_file("config.json", json.dump(2) + "\n");
  }
  done.side_files = writer.copy_side_files(folder);
  writer.commit();
  done.tensors = std::ssize(tensors);
  for (const TensorInfo& info : tensors) done.bytes += info.shape.size() * size_of(info.dtype);
  return done;
}

}  // namespace elapid
