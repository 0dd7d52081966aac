#include "elapid/model/quantize.h"

#include "elapid/core/error.h"
#include "elapid/io/checkpoint.h"
#include "elapid/io/checkpoint_writer.h"
#include "elapid/model/builder.h"
#include "elapid/model/checkpoint_rules.h"
#include "elapid/model/quantization.h"
#include "elapid/ops/matmul/quantized.h"

#include <algorithm>
#include <map>

namespace elapid {
namespace {

constexpr int64_t kConfigLimit = int64_t{16} << 20;

// Which of the checkpoint's tensors become codes: those of which all rows, at full width, are matrices of one
// precision. A matrix is put together from tensors that are all codes or none, or it would be rounded twice.
std::map<std::string, Packing> codes_of(Model& model, const Checkpoint& weights, const CheckpointRules& rules,
                                        Precision precision) {
  std::map<std::string, Packing> packings;
  const auto none = [&](const std::string& name) { packings.insert_or_assign(name, Packing::rows); };
  model.visit([&](const ParameterInfo& info) {
    for (const NameRule& rule : rules.at(info.name)) {
      const Tensor &t = weights.at(rule.theirs), part = part_of(t, rule, info.shape);
      const Precision held = info.role == Role::matrix ? precision_for(info, t.dtype, precision) : Precision::f32;
      const Packing packing = held == Precision::int8   ? Packing::int8
                              : held == Precision::int4 ? Packing::int4
                                                        : Packing::rows;
      const auto [known, is_new] = packings.emplace(rule.theirs, packing);
      if (part.shape[1] != t.cols() || known->second != packing) none(rule.theirs);
    }
  });
  for (bool changed = true; changed;) {
    changed = false;
    for (const auto& [ours, parts] : rules) {
      const auto is_none = [&](const NameRule& rule) { return packings[rule.theirs] == Packing::rows; };
      if (std::all_of(parts.begin(), parts.end(), is_none) || std::none_of(parts.begin(), parts.end(), is_none)) {
        continue;
      }
      for (const NameRule& rule : parts) none(rule.theirs);
      changed = true;
    }
  }
  std::erase_if(packings, [](const auto& entry) { return entry.second == Packing::rows; });
  return packings;
}

// Codes and scales of one tensor at a time.
class Coder {
 public:
  Coder(const Checkpoint& weights, ThreadPool& threads) : weights_(weights), threads_(threads) {}

  struct Result {
    Tensor codes, scales;
  };
  // Valid until the next call with another name.
  Result operator()(const std::string& name, Packing packing) {
    const Checkpoint::Entry& entry = weights_.entries().find(name)->second;
    const Shape& shape = entry.tensor.shape;
    const Tensor rows = as_matrix(entry.tensor);
    const Shape codes = with_columns(shape, code_bytes(packing, shape[shape.rank - 1])),
                scales = with_columns(shape, quant_groups(shape[shape.rank - 1]));
    if (name != name_) {
      name_ = name;
      codes_ = Buffer();
      scales_ = Buffer();
      Buffer packed(quantized_bytes(rows.shape, packing));
      const Tensor done = pack_quantized(threads_, {&rows, 1}, packing, packed.data(), name);
      codes_ = Buffer(codes.size());
      scales_ = Buffer(scales.size() * size_of(DType::f32));
      unpack_codes(threads_, done, packing, static_cast<uint8_t*>(codes_.data()), static_cast<float*>(scales_.data()));
      if (entry.file) {
        entry.file->drop_pages(
            {static_cast<const std::byte*>(entry.tensor.data), static_cast<size_t>(entry.tensor.bytes())});
      }
    }
    return {{codes_.data(), DType::u8, codes}, {scales_.data(), DType::f32, scales}};
  }

 private:
  const Checkpoint& weights_;
  ThreadPool& threads_;
  std::string name_;
  Buffer codes_, scales_;
};

}  // namespace

QuantizedFolder quantize_checkpoint(const std::filesystem::path& folder, const std::filesystem::path& output,
                                    ThreadPool& threads, const QuantizeOptions& options) {
  require(options.precision == Precision::int8 || options.precision == Precision::int4,
          "quantize: must be to int8 or int4, got ", name_of(options.precision));
  ModelConfig config = load_config(folder);
  require(!config.quantization, "quantize: ", folder.string(), " must not be quantized yet, got ",
          config.quantization ? config.quantization->code : "", " by ",
          config.quantization ? name_of(config.quantization->method) : "");
  const Checkpoint weights = Checkpoint::open_folder(folder);
  const CheckpointRules rules = checkpoint_rules(config);
  untie_if_different(config, weights, rules);
  check_tensors(config, weights, rules, "quantize");
  Model model(config);
  const std::map<std::string, Packing> packings = codes_of(model, weights, rules, options.precision);
  require(!packings.empty(), "quantize: ", folder.string(), " must have a matrix of at least ", 2 * kQuantGroup,
          " inputs, got none");

  QuantizedFolder done;
  done.family = config.family;
  std::vector<TensorInfo> tensors;
  for (const auto& [name, entry] : weights.entries()) {
    // A tied head is the embedding once more.
    if (config.tied_head && name == rules.at(kHeadName).front().theirs) continue;
    const Shape& shape = entry.tensor.shape;
    ++done.tensors;
    done.original_bytes += entry.tensor.bytes();
    const auto packing = packings.find(name);
    if (packing == packings.end()) {
      tensors.push_back({name, entry.tensor.dtype, shape});
    } else {
      const int64_t in = shape[shape.rank - 1];
      tensors.push_back({name, DType::u8, with_columns(shape, code_bytes(packing->second, in))});
      tensors.push_back({name + std::string(kScales), DType::f32, with_columns(shape, quant_groups(in))});
      ++done.quantized;
    }
  }
  for (const TensorInfo& info : tensors) done.bytes += info.shape.size() * size_of(info.dtype);

  CheckpointWriter writer(output);
  Coder code(weights, threads);
  int64_t written = 0;
  const auto produce = [&](const TensorInfo& info) {
    if (options.progress) options.progress(written, done.bytes);
    written += info.shape.size() * size_of(info.dtype);
    const bool scales = info.name.ends_with(kScales);
    const std::string name = scales ? info.name.substr(0, info.name.size() - kScales.size()) : info.name;
    const auto packing = packings.find(name);
    if (packing == packings.end()) return weights.at(info.name);
    const Coder::Result result = code(name, packing->second);
    return scales ? result.scales : result.codes;
  };
  writer.write_tensors(tensors, produce, options.max_shard_bytes);

  const bool mistral = config.family == kMistralMambaFamily.model_type;
  const std::string file = mistral ? "params.json" : "config.json";
  const std::string text = read_text_file(folder / file, kConfigLimit);
  OrderedJson json = parse_ordered_json(text, (folder / file).string());
  json["quantization_config"] = quantization_json(options.precision);
  writer.write_file(file, json.dump(2) + "\n");
  std::error_code ignored;
  if (!mistral && std::filesystem::exists(folder / "params.json", ignored)) {
    // It tells how the model was trained.
    writer.write_file("params.json", read_text_file(folder / "params.json", kConfigLimit));
    done.side_files.emplace_back("params.json");
  }
  for (std::string& name : writer.copy_side_files(folder)) done.side_files.push_back(std::move(name));
  writer.commit();
  return done;
}

}  // namespace elapid
