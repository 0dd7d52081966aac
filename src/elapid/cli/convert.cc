#include "elapid/model/convert.h"

#include "elapid/cli/command.h"
#include "elapid/cli/model_options.h"
#include "elapid/cli/output.h"
#include "elapid/io/checkpoint_writer.h"

#include <optional>

namespace elapid::cli {
namespace {

struct Options {
  ModelOptions model;
  std::optional<std::string> output;
  int64_t max_shard_bytes = kDefaultShardBytes;
  bool json = false;
};

void run(const Options& o) {
  if (!o.output) throw UsageError("--output: must name the folder to write, got nothing");
  if (!o.model.model) throw UsageError("--model: must name the folder to convert, got nothing");
  const Conversion done = convert_checkpoint(
      o.model.folder(), *o.output, {.load = {.gated_norm = o.model.gated_norm}, .max_shard_bytes = o.max_shard_bytes});
  if (o.json) {
    return print_json(OrderedJson{
        {"family", done.family}, {"tensors", done.tensors}, {"bytes", done.bytes}, {"side_files", done.side_files}});
  }
  std::string files;
  for (const std::string& name : done.side_files) files += (files.empty() ? "" : ", ") + name;
  print(concat(*o.output, ": ", done.family, ", ", done.tensors, " tensors, ", done.bytes, " bytes",
               files.empty() ? "" : "; with ", files, "\n"));
}

}  // namespace

Run prepare_convert(Flags& flags) {
  const auto o = std::make_shared<Options>();
  o->model.add(flags);
  flags.text("--output", "DIR", o->output, "The folder to write; must not exist, or be empty");
  add_shard_size(flags, o->max_shard_bytes);
  flags.flag("--json", o->json, "Print one JSON object");
  flags.footer(
      "Writes config.json, safetensors and the tokenizer's files as transformers loads them. Tensors keep their values "
      "and\nelement types.");
  return [o] { run(*o); };
}

}  // namespace elapid::cli
