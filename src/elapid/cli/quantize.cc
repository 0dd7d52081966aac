#include "elapid/model/quantize.h"

#include "elapid/cli/command.h"
#include "elapid/cli/input.h"
#include "elapid/cli/model_options.h"
#include "elapid/cli/output.h"
#include "elapid/infer/compare.h"
#include "elapid/io/checkpoint_writer.h"

#include <cmath>
#include <optional>

namespace elapid::cli {
namespace {

constexpr int64_t kCompared = 128;  // rows of both models' logits in memory

struct Options {
  ModelOptions model;
  std::optional<std::string> output, calib;
  std::optional<Precision> precision, reference;
  int64_t max_shard_bytes = kDefaultShardBytes, calib_tokens = 4096;
  bool json = false;
};

// The first ids of the text.
std::vector<TokenId> calibration_ids(const Options& o, const std::filesystem::path& folder) {
  TextReader reader(o.calib);
  const Tokenizer tokenizer = o.model.load_tokenizer(folder);
  EncodeStream encoder(tokenizer, {.add_special_tokens = true});
  const auto most = static_cast<size_t>(o.calib_tokens);
  std::vector<TokenId> ids;
  bool whole = true;
  for (std::string_view piece = reader.next(); !piece.empty(); piece = reader.next()) {
    encoder.push(piece, ids);
    if (ids.size() < most) continue;
    whole = false;
    break;
  }
  if (whole) encoder.finish(ids);
  if (ids.size() > most) ids.resize(most);
  require(ids.size() >= 2, "--calib: the text must have at least two tokens, got ", ids.size());
  return ids;
}

struct Loss {
  Comparison comparison;
  std::string reference;
  [[nodiscard]] double perplexity() const { return std::exp(comparison.nll); }
  [[nodiscard]] double quantized() const { return std::exp(comparison.other_nll); }
  [[nodiscard]] double percent() const { return 100 * std::expm1(comparison.other_nll - comparison.nll); }
};

Loss measure(const Options& o, const std::filesystem::path& folder, ThreadPool& threads,
             const std::vector<TokenId>& ids) {
  const LoadOptions as_it_is{.gated_norm = o.model.gated_norm, .precision = o.reference},
      quantized{.gated_norm = o.model.gated_norm, .precision = std::nullopt};
  const auto original = load_model(folder, threads, as_it_is), other = load_model(*o.output, threads, quantized);
  Engine one(*original, threads, {.chunk = kCompared}), two(*other, threads, {.chunk = kCompared});
  Progress progress("compare", std::ssize(ids));
  const Comparison comparison = compare(one, two, ids, [&](int64_t done) { progress.update(done); });
  require(std::isfinite(std::exp(comparison.nll)) && std::isfinite(comparison.other_nll) &&
              std::isfinite(comparison.divergence),
          "quantize: perplexity and divergence must be finite, got means of ", comparison.nll, ", ",
          comparison.other_nll, " and ", comparison.divergence, " nats a token");
  return {comparison, std::string(name_of(original->weights().precision))};
}

void run(const Options& o) {
  if (!o.output) throw UsageError("--output: must name the folder to write, got nothing");
  if (!o.precision) throw UsageError("--dtype: must be int8 or int4, got nothing");
  const std::filesystem::path folder = o.model.folder();
  // What is wrong with the text is found before anything is written.
  const std::vector<TokenId> ids = o.calib ? calibration_ids(o, folder) : std::vector<TokenId>();
  const auto threads = o.model.start_threads();
  std::optional<Progress> progress;
  const QuantizedFolder done = quantize_checkpoint(
      folder, *o.output, *threads,
      {.precision = *o.precision, .max_shard_bytes = o.max_shard_bytes, .progress = [&](int64_t bytes, int64_t total) {
         if (!progress) progress.emplace("quantize", total);
         progress->update(bytes);
       }});
  progress.reset();
  std::optional<Loss> loss;
  if (o.calib) loss = measure(o, folder, *threads, ids);

  const std::string dtype(name_of(*o.precision));
  if (o.json) {
    OrderedJson json = {{"family", done.family},        {"dtype", dtype},
                        {"tensors", done.tensors},      {"quantized_tensors", done.quantized},
                        {"bytes", done.bytes},          {"original_bytes", done.original_bytes},
                        {"side_files", done.side_files}};
    if (loss) {
      json["loss"] = {{"tokens", loss->comparison.tokens},
                      {"original_dtype", loss->reference},
                      {"original_perplexity", loss->perplexity()},
                      {"perplexity", loss->quantized()},
                      {"perplexity_change_percent", loss->percent()},
                      {"kl_divergence", loss->comparison.divergence}};
    }
    return print_json(json);
  }
  std::string text = concat(*o.output, ": ", dtype, ", ", done.quantized, " of ", done.tensors, " tensors quantized, ",
                            done.bytes, " bytes of ", done.original_bytes, "\n");
  if (loss) {
    text += concat("tokens                ", loss->comparison.tokens, "\nperplexity, original  ",
                   format("%.4f", loss->perplexity()), " in ", loss->reference, "\nperplexity            ",
                   format("%.4f", loss->quantized()), ", ", format("%+.3f", loss->percent()),
                   " %\nKL divergence         ", format("%.6f", loss->comparison.divergence), " nats a token\n");
  }
  print(text);
}

}  // namespace

Run prepare_quantize(Flags& flags) {
  const auto o = std::make_shared<Options>();
  o->model.add_folder(flags);
  o->model.add_tokenizer(flags);
  flags.option(
      "--dtype", "T",
      [o](const std::string& text) {
        if (text != "int8" && text != "int4") throw UsageError(concat("--dtype: must be int8 or int4, got ", text));
        o->precision = text == "int8" ? Precision::int8 : Precision::int4;
      },
      "int8 | int4: what matrices are rounded to");
  flags.text("--output", "DIR", o->output, "The folder to write; must not exist, or be empty");
  add_shard_size(flags, o->max_shard_bytes);
  flags.text("--calib", "F", o->calib, "Report the loss on this text: perplexities, and the divergence per token");
  flags.integer("--calib-tokens", o->calib_tokens, {2, int64_t{1} << 24},
                "Read the first N tokens of it (default: 4096)");
  flags.option(
      "--calib-dtype", "T",
      [o](const std::string& text) {
        if (text != "auto" && text != "bf16" && text != "f32") {
          throw UsageError(concat("--calib-dtype: must be auto, bf16 or f32, got ", text));
        }
        o->reference.reset();
        if (text != "auto") o->reference = text == "bf16" ? Precision::bf16 : Precision::f32;
      },
      "auto | bf16 | f32: what the original runs in there (default: auto, as it is stored)");
  flags.flag("--json", o->json, "Print one JSON object");
  flags.footer(
      "Every command loads the folder as it would load --model with the same --dtype, bit for bit, on every machine. "
      "It "
      "says\nso itself: --dtype auto. --calib needs memory for both models.");
  return [o] { run(*o); };
}

}  // namespace elapid::cli
