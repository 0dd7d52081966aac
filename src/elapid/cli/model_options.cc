#include "elapid/cli/model_options.h"

#include "elapid/cli/output.h"
#include "elapid/io/checkpoint_writer.h"
#include "elapid/io/file.h"
#include "elapid/io/json.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <string_view>

namespace elapid::cli {
namespace {

constexpr int64_t kMostThreads = 1024;
constexpr int64_t kPlanTokens = 4096;  // what a sequence's growing memory is counted for

Device parse_device(const std::string& device) {
  if (device == "cpu") return {};
  const bool numbered = device.starts_with("cuda:");
  if (device != "cuda" && !numbered) throw UsageError(concat("--device: must be cpu or cuda[:N], got ", device));
  if (!kWithCuda) throw UsageError(concat("--device: must be cpu, as this build has no CUDA, got ", device));
  Device cuda{DeviceType::cuda};
  if (!numbered) return cuda;
  const std::string_view digits = std::string_view(device).substr(5);
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), cuda.index);
  if (error != std::errc() || end != digits.data() + digits.size() || cuda.index < 0) {
    throw UsageError(concat("--device: must be cpu or cuda[:N], got ", device));
  }
  return cuda;
}

std::optional<Precision> parse_precision(const std::string& dtype) {
  if (dtype == "auto") return {};
  for (const Precision precision : {Precision::f32, Precision::bf16, Precision::int8, Precision::int4}) {
    if (dtype == name_of(precision)) return precision;
  }
  throw UsageError(concat("--dtype: must be auto, f32, bf16, int8 or int4, got ", dtype));
}

// Beside the installed command, else where this was built.
std::filesystem::path bundled_model() {
  std::error_code error;
  const std::filesystem::path executable = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::array<std::filesystem::path, 2> places = {
      executable.parent_path().parent_path() / "share/elapid/models/storyteller",
      std::filesystem::path(ELAPID_SOURCE_DIR) / "models/storyteller"};
  for (const auto& place : places) {
    if (std::filesystem::exists(place / "config.json", error)) return place;
  }
  throw UsageError(concat("--model: must be given when the bundled storyteller is absent, got nothing at ",
                          places[0].string(), " and ", places[1].string()));
}

}  // namespace

void ModelOptions::add_folder(Flags& flags) {
  flags.text("--model", "DIR", model, "Hugging Face folder (default: the bundled storyteller)");
  flags.option(
      "--device", "DEV", [this](const std::string& text) { device = parse_device(text); },
      kWithCuda ? "cpu | cuda[:N]: what the model is loaded to and runs on (default: cpu)"
                : "cpu | cuda[:N]; this build has cpu alone");
  flags.option(
      "--gated-norm", "NORM",
      [this](const std::string& text) {
        if (text != "group" && text != "whole") {
          throw UsageError(concat("--gated-norm: must be group or whole, got ", text));
        }
        gated_norm = text == "group" ? GatedNorm::group : GatedNorm::whole;
      },
      "group | whole: what Mamba-2's gated norm covers where n_groups > 1 (default: as the checkpoint was trained)");
  flags.integer("--threads", threads, {1, kMostThreads}, "Threads (default: all cores this process may use)");
}

void ModelOptions::add(Flags& flags) {
  add_folder(flags);
  flags.option(
      "--packed-cache", "DIR",
      [this](const std::string& text) {
        if (text.empty()) throw UsageError("--packed-cache: must be a folder, got nothing");
        packed_cache = text;
      },
      "Keep the packed weights in this folder, made when it is missing: the next load of the same files maps them");
  flags.option(
      "--dtype", "T", [this](const std::string& text) { precision = parse_precision(text); },
      "f32: float32 arithmetic over the weights as stored | bf16: bf16 products, float32 sums, states and norms | "
      "int8, int4: that, with weights rounded to 8 or 4 bits while loading | auto: as a quantized checkpoint says, "
      "bf16 "
      "where it is bf16 or f16, else f32 (default: auto)");
}

void ModelOptions::add_tokenizer(Flags& flags) {
  flags.text("--tokenizer", "PATH", tokenizer,
             "tokenizer.json, tokenizer.model or their folder (default: the model's)");
}

std::filesystem::path ModelOptions::folder() const {
  if (model) {
    require(is_folder(*model), "--model: must be a folder, got ", *model);
    return *model;
  }
  const std::filesystem::path path = bundled_model();
  note(concat("no --model: using the bundled storyteller, ", path.string()));
  return path;
}

std::unique_ptr<ThreadPool> ModelOptions::start_threads() const {
  // More threads than cores wait for each other's cores.
  const int64_t cores = ThreadPool::usable_cores();
  if (threads > cores) note(concat("note: --threads ", threads, ": this process may use ", cores));
  return std::make_unique<ThreadPool>(static_cast<int>(std::min(threads, cores)));
}

std::unique_ptr<Model> ModelOptions::load(const std::filesystem::path& folder, ThreadPool& pool) const {
  auto loaded = load_model(folder, pool, load_options());
  for (const std::string& text : loaded->config().notes) note(concat("note: ", text));
  for (const std::string& key : loaded->config().unknown_keys) {
    note(concat("note: config.json: ", quote(key), " is not known here and has no effect"));
  }
  note_memory_plan(*loaded);
  return loaded;
}

Tokenizer ModelOptions::load_tokenizer(const std::filesystem::path& model_folder) const {
  if (tokenizer) return Tokenizer::load(*tokenizer);
  require(
      Tokenizer::find(model_folder).has_value(), model_folder.string(),
      ": must have tokenizer.json, tokenizer.model.v3 or tokenizer.model, got none of them; name one with --tokenizer"
      " (raw state-spaces folders: the tokenizer.json of EleutherAI/gpt-neox-20b)");
  return Tokenizer::load(model_folder);
}

void note_memory_plan(const Model& model) {
  if constexpr (kWithCuda) {
    const Device device = model.device();
    if (!on_cuda(device)) return;
    const CudaDevice card = checked_cuda_device(device.index);
    const DeviceMemory memory = cuda_memory(device.index);
    const StateSpec& states = *model.state_spec();
    const auto gib = [](int64_t bytes) {
      return format("%.2f", static_cast<double>(bytes) / static_cast<double>(int64_t{1} << 30));
    };
    const int64_t tokens = states.bytes_per_token(), each = states.bytes_per_sequence() + kPlanTokens * tokens;
    std::string text = concat("note: cuda:", device.index, ", ", card.name, ": weights ", gib(model.memory_bytes()),
                              " of ", gib(memory.total), " GiB; a sequence ", states.bytes_per_sequence(), " bytes");
    if (tokens > 0) text += concat(" and ", tokens, " a token");
    if (each > 0) {
      text += concat("; room for ", memory.free / each, " sequences");
      if (tokens > 0) text += concat(" of ", kPlanTokens, " tokens");
    }
    note(text);
  }
}

int64_t drawable_ids(const ModelConfig& config, const Tokenizer* tokenizer) {
  const int64_t rows = config.tokens > 0 ? config.tokens : config.vocab;
  return tokenizer == nullptr ? rows : std::min(rows, tokenizer->vocab_size());
}

void add_shard_size(Flags& flags, int64_t& bytes) {
  flags.option(
      "--max-shard-size", "SIZE",
      [&bytes](const std::string& text) {
        try {
          bytes = parse_byte_size(text, "--max-shard-size");
        } catch (const Error& error) {
          throw UsageError(error.what());
        }
      },
      "Split the weights into files of at most SIZE, as in 5GB or 200MiB (default: 5GB)");
}

void RunOptions::add(Flags& flags) {
  flags.integer("--chunk", chunk, {1, int64_t{1} << 24},
                "Run long inputs in pieces of N tokens; results change by rounding at most (default: 512)");
  flags.option(
      "--state-dtype", "T",
      [this](const std::string& text) {
        if (text != "f32" && text != "bf16") throw UsageError(concat("--state-dtype: must be f32 or bf16, got ", text));
        state = text == "f32" ? DType::f32 : DType::bf16;
      },
      "f32 | bf16: what the recurrences' states are held in between forward calls; bf16 halves what decoding many "
      "sequences moves, and rounds (default: f32)");
}

}  // namespace elapid::cli
