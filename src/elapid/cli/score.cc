#include "elapid/infer/score.h"

#include "elapid/cli/command.h"
#include "elapid/cli/input.h"
#include "elapid/cli/model_options.h"
#include "elapid/cli/output.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>
#include <span>

namespace elapid::cli {
namespace {

constexpr size_t kFed = 512;  // ids between two looks at the progress

struct Options {
  ModelOptions model;
  std::optional<std::string> file;
  RunOptions run;
  bool per_token = false, no_special = false, json = false;
};

struct Result {
  int64_t tokens = 0, bytes = 0;
  double nll = 0, seconds = 0;
  std::vector<float> per_token;
};

// Reads, encodes and scores piece by piece.
Result score(const Options& o, TextReader& reader, std::string_view piece, const Tokenizer& tokenizer, Engine& engine) {
  Result result;
  std::function<void(float)> keep;
  if (o.per_token) keep = [&result](float nll) { result.per_token.push_back(nll); };
  Scorer scorer(engine, keep);
  EncodeStream encoder(tokenizer, {.add_special_tokens = !o.no_special});
  Progress progress("score", reader.size());
  const Stopwatch clock;
  std::vector<TokenId> ids;
  int64_t encoded = 0, bytes_scored = 0;
  const auto feed = [&] {
    // The encoder hands out ids in bursts: they advance from what was scored before to what has been read.
    const std::span<const TokenId> burst(ids);
    for (size_t at = 0; at < burst.size(); at += kFed) {
      scorer.push(burst.subspan(at, std::min(kFed, burst.size() - at)));
      const double share = static_cast<double>(at) / static_cast<double>(burst.size());
      progress.update(bytes_scored +
                      static_cast<int64_t>(share * static_cast<double>(reader.position() - bytes_scored)));
    }
    if (!ids.empty()) bytes_scored = reader.position();
    encoded += static_cast<int64_t>(ids.size());
    ids.clear();
  };
  for (; !piece.empty(); piece = reader.next()) {
    encoder.push(piece, ids);
    feed();
  }
  encoder.finish(ids);
  feed();
  scorer.finish();
  require(scorer.tokens() > 0, "score: the text must have at least two tokens, got ", encoded);
  result.tokens = scorer.tokens();
  result.bytes = reader.position();
  result.nll = scorer.total();
  result.seconds = clock.seconds();
  return result;
}

void run(const Options& o) {
  TextReader reader(o.file);
  const std::string_view first = reader.next();
  require(!first.empty(), "score: the text must not be empty, got 0 bytes");
  const std::filesystem::path folder = o.model.folder();
  const Tokenizer tokenizer = o.model.load_tokenizer(folder);
  const auto threads = o.model.start_threads();
  const auto model = o.model.load(folder, *threads);
  Engine engine(*model, *threads, {.chunk = o.run.chunk, .state = o.run.state});
  const Result r = score(o, reader, first, tokenizer, engine);

  const double mean = r.nll / static_cast<double>(r.tokens);
  require(std::isfinite(std::exp(mean)), "score: the perplexity must be finite, got a mean of ", mean, " nats a token");
  const double bits_per_byte = r.nll / std::numbers::ln2 / static_cast<double>(r.bytes);
  const double speed = static_cast<double>(r.tokens) / r.seconds;
  if (o.json) {
    OrderedJson json = {{"tokens", r.tokens},
                        {"nll_mean", mean},
                        {"perplexity", std::exp(mean)},
                        {"bits_per_byte", bits_per_byte},
                        {"tok_s", speed},
                        {"peak_rss_mib", peak_memory_mib()}};
    if (o.per_token) json["nll"] = r.per_token;
    return print_json(json);
  }
  std::string out;
  for (const float nll : r.per_token) out += format("%.6f\n", nll);
  print(out + concat("tokens         ", r.tokens, "\nnll_mean       ", format("%.6f", mean), "\nperplexity     ",
                     format("%.4f", std::exp(mean)), "\nbits_per_byte  ", format("%.6f", bits_per_byte),
                     "\ntok_s          ", format("%.0f", speed), "\npeak_rss_mib   ", format("%.1f", peak_memory_mib()),
                     "\n"));
}

}  // namespace

Run prepare_score(Flags& flags) {
  const auto o = std::make_shared<Options>();
  o->model.add(flags);
  o->model.add_tokenizer(flags);
  flags.text("--file", "F", o->file, "The text (default: standard input)");
  flags.flag("--per-token", o->per_token, "Also every token's nll, in nats, one a line (--json: \"nll\")");
  flags.flag("--no-special", o->no_special, "Leave out what the tokenizer adds, such as a leading bos");
  o->run.add(flags);
  flags.flag("--json", o->json, "Print one JSON object");
  flags.footer(
      "Every token after the first id is scored. Memory does not grow with the text (--per-token: 4 bytes a token).");
  return [o] { run(*o); };
}

}  // namespace elapid::cli
