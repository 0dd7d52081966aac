#include "elapid/cli/command.h"
#include "elapid/cli/model_options.h"
#include "elapid/cli/output.h"
#include "elapid/core/random.h"
#include "elapid/infer/engine.h"
#include "elapid/io/file.h"
#include "elapid/ops/ceiling/ceiling.h"

#include <algorithm>
#include <optional>

namespace elapid::cli {
namespace {

constexpr int64_t kConfigLimit = int64_t{16} << 20;

struct Options {
  ModelOptions model;
  std::optional<std::string> config;
  int64_t prompt = 512, gen = 64, batch = 1, repeat = 3;
  RunOptions run;
  bool json = false;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

struct Times {
  double prefill = 0, decode = 0;  // seconds
};

// One prompt and one generation of every sequence, with random ids.
class Bench {
 public:
  Bench(Engine& engine, const Options& o) : engine_(engine), options_(o) {
    const auto vocab = static_cast<double>(engine.model().config().vocab);
    ids_.resize(static_cast<size_t>(o.batch * std::max(o.prompt, o.gen)));
    for (size_t i = 0; i < ids_.size(); ++i) ids_[i] = static_cast<TokenId>(uniform(0, i, 0) * vocab);
  }

  Times operator()() {
    std::vector<Slot> slots;
    for (int64_t s = 0; s < options_.batch; ++s) slots.push_back(engine_.states().acquire());
    const auto feed = [&](int64_t first, int64_t count) {
      std::vector<Input> inputs;
      for (int64_t s = 0; s < options_.batch; ++s) {
        const TokenId* begin = ids_.data() + s * std::max(options_.prompt, options_.gen) + first;
        inputs.push_back({{begin, static_cast<size_t>(count)}, slots[static_cast<size_t>(s)].index()});
      }
      engine_.last_logits(inputs);
    };
    Times times;
    const Stopwatch prefill;
    feed(0, options_.prompt);
    times.prefill = prefill.seconds();
    const Stopwatch decode;
    for (int64_t t = 0; t < options_.gen; ++t) feed(t, 1);
    times.decode = decode.seconds();
    return times;
  }

 private:
  Engine& engine_;
  const Options& options_;
  std::vector<TokenId> ids_;
};

void run(const Options& o) {
  if (o.config && o.model.model) throw UsageError("--config: must not go with --model, got both");
  if (o.config && o.model.packed_cache) {
    throw UsageError("--packed-cache: must not go with --config, whose weights are random, got both");
  }
  std::optional<ModelConfig> config;
  if (o.config) config = parse_config(read_text_file(*o.config, kConfigLimit), *o.config);
  const std::string name = o.config ? *o.config : o.model.folder().string();
  const auto threads = o.model.start_threads();
  const Stopwatch load;
  const auto model =
      config ? random_model(*config, *threads, 1, o.model.precision, o.model.device) : o.model.load(name, *threads);
  if (config) note_memory_plan(*model);
  const double load_seconds = load.seconds();
  Engine engine(
      *model, *threads,
      {.slots = o.batch, .chunk = o.run.chunk, .batch = std::max(o.run.chunk, o.batch), .state = o.run.state});

  Progress progress("bench", o.repeat + 1);
  Bench bench(engine, o);
  bench();  // page faults, and threads that still sleep
  std::vector<double> prefill, decode;
  for (int64_t r = 0; r < o.repeat; ++r) {
    progress.update(r + 1);
    const Times times = bench();
    prefill.push_back(times.prefill);
    decode.push_back(times.decode);
  }
  const double peak = peak_memory_mib();  // before the ceilings take theirs
  Context ctx = engine.context();
  const Ceilings ceilings = measure_ceilings(ctx);

  const Model::Weights& weights = model->weights();
  const double prefill_rate = static_cast<double>(o.batch * o.prompt) / median(prefill);
  const double step = median(decode) / static_cast<double>(o.gen);  // seconds
  // A step reads the weights once, and reads and writes every sequence's state.
  const double step_bytes = static_cast<double>(weights.bytes_per_token) +
                            2.0 * static_cast<double>(engine.states().bytes_per_sequence() * o.batch);
  const double of_bandwidth = step_bytes / step / (ceilings.read_gb_s * 1e9);
  const double tflops = weights.precision == Precision::f32 ? ceilings.tflops : ceilings.bf16_tflops;
  const double of_compute =
      tflops > 0 ? 2.0 * static_cast<double>(weights.matrix_elements) * prefill_rate / (tflops * 1e12) : 0;
  const OrderedJson json = {{"model", name},
                            {"device", on_cuda(model->device()) ? concat("cuda:", model->device().index) : "cpu"},
                            {"dtype", name_of(weights.precision)},
                            {"threads", threads->size()},
                            {"batch", o.batch},
                            {"prompt", o.prompt},
                            {"gen", o.gen},
                            {"prefill_tok_s", prefill_rate},
                            {"decode_tok_s", static_cast<double>(o.batch) / step},
                            {"decode_ms_per_token", step * 1e3},
                            {"load_s", load_seconds},
                            {"peak_mem_mib", peak},
                            {"weight_bytes_per_token", weights.bytes_per_token},
                            {"ceiling_gb_s", ceilings.read_gb_s},
                            {"of_bandwidth", of_bandwidth},
                            {"ceiling_tflops", tflops},
                            {"of_compute", of_compute}};
  if (o.json) return print_json(json);
  print(concat(name, ": ", name_of(weights.precision), " arithmetic, states in ", name_of(o.run.state), ", ",
               threads->size(), " threads, ", o.batch, " sequences, median of ", o.repeat, "\nprefill  ",
               format("%10.1f", prefill_rate), " tok/s  ", format("%5.1f", of_compute * 100), "% of ",
               format("%.3f", tflops), " TFLOP/s   (", o.prompt, " tokens a sequence)\ndecode   ",
               format("%10.1f", static_cast<double>(o.batch) / step), " tok/s  ", format("%5.1f", of_bandwidth * 100),
               "% of ", format("%.1f", ceilings.read_gb_s), " GB/s      (", o.gen, " steps, ",
               format("%.3f", step * 1e3), " ms each)\nload     ", format("%10.2f", load_seconds), " s\npeak     ",
               format("%10.1f", peak), " MiB\n"));
}

}  // namespace

Run prepare_bench(Flags& flags) {
  const auto o = std::make_shared<Options>();
  constexpr int64_t kMost = int64_t{1} << 24;
  o->model.add(flags);
  flags.text("--config", "FILE", o->config, "A config.json to run with random weights, instead of --model");
  flags.integer("--prompt", o->prompt, {1, kMost}, "Tokens of each prompt (default: 512)");
  flags.integer("--gen", o->gen, {1, kMost}, "Tokens to decode for each sequence (default: 64)");
  flags.integer("--batch", o->batch, {1, 65536}, "Sequences (default: 1)");
  flags.integer("--repeat", o->repeat, {1, 10000}, "Measured runs, after one that is not (default: 3)");
  o->run.add(flags);
  flags.flag("--json", o->json, "Print one JSON object");
  flags.footer(
      "Speeds are medians. Prefill is set against the measured multiply-add ceiling (2 operations for each matrix "
      "weight\n"
      "but embedding and head), decode against the measured read bandwidth (weights once a step, states in and out).");
  return [o] { run(*o); };
}

}  // namespace elapid::cli
