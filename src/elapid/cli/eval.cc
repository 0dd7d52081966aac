#include "elapid/cli/command.h"
#include "elapid/cli/input.h"
#include "elapid/cli/model_options.h"
#include "elapid/cli/output.h"
#include "elapid/infer/likelihood.h"
#include "elapid/io/json.h"
#include "elapid/text/unicode.h"

#include <cmath>
#include <optional>

namespace elapid::cli {
namespace {

constexpr int64_t kDefaultBatch = 16;

struct Options {
  ModelOptions model;
  std::optional<std::string> task, data;
  int64_t limit = 0, batch = kDefaultBatch;
  RunOptions run;
  bool json = false;
};

// LAMBADA's passages, one {"text": …} a line; empty lines are none.
std::vector<std::string> read_passages(const Options& o) {
  const std::string text = read_text(o.data);
  std::vector<std::string> passages;
  int64_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string what = concat(*o.data, " line ", number);
    const Json json = parse_json(line, what);
    const auto found = json.find("text");
    require(json.is_object() && found != json.end() && found->is_string(), what,
            ": must be an object with a text, got ", describe(json));
    passages.push_back(found->get<std::string>());
    if (o.limit > 0 && std::ssize(passages) == o.limit) break;
  }
  require(!passages.empty(), *o.data, ": must hold passages, got none");
  return passages;
}

// Where the text's trailing white space, what Python's str.rstrip() takes, begins.
size_t end_of_words(std::string_view text) {
  while (!text.empty()) {
    const size_t last = unicode::last_character(text);
    const char32_t code = unicode::decode(text.data() + last).code;
    const bool separator = code >= 0x1C && code <= 0x1F;
    if (!separator && !unicode::is_space(code)) break;
    text = text.substr(0, last);
  }
  return text.size();
}

// As lm-evaluation-harness cuts a passage (lambada.yaml: doc_to_text and doc_to_target) and encodes the pair
// (TemplateLM._encode_pair): the last word is what follows the last space; all white space before it goes with it; ids
// of the context alone tell how many of the whole passage's ids are the context's; nothing is added by the tokenizer.
Query query_of(const std::string& passage, const Tokenizer& tokenizer) {
  const size_t space = passage.rfind(' ');
  require(space != std::string::npos && space > 0, "eval: a passage must have a word before its last one, got ",
          quote(passage));
  const size_t valid = unicode::valid_utf8_prefix(passage);
  require(valid == passage.size(), "eval: a passage must be valid UTF-8, got an invalid byte at offset ", valid);
  const size_t end = end_of_words(std::string_view(passage).substr(0, space));
  require(end > 0, "eval: a passage must have a word before its last one, got ", quote(passage));
  const EncodeOptions plain{.add_special_tokens = false};
  const std::vector<TokenId> whole = tokenizer.encode(passage, plain);
  std::vector<TokenId> context = tokenizer.encode(std::string_view(passage).substr(0, end), plain);
  require(!context.empty() && context.size() < whole.size(), "eval: the last word must have ids of its own, got ",
          quote(passage));
  Query query;
  query.continuation.assign(whole.begin() + std::ssize(context), whole.end());
  query.context = std::move(context);
  return query;
}

void run(const Options& o) {
  if (!o.task) throw UsageError("--task: must be lambada_openai, got nothing");
  if (*o.task != "lambada_openai") throw UsageError(concat("--task: must be lambada_openai, got ", *o.task));
  if (!o.data) throw UsageError("--data: must name the task's file, got nothing");
  const std::vector<std::string> passages = read_passages(o);
  const std::filesystem::path folder = o.model.folder();
  const Tokenizer tokenizer = o.model.load_tokenizer(folder);
  std::vector<Query> queries;
  for (const std::string& passage : passages) queries.push_back(query_of(passage, tokenizer));
  const auto threads = o.model.start_threads();
  const auto model = o.model.load(folder, *threads);
  Engine engine(
      *model, *threads,
      {.slots = 2 * o.batch, .chunk = o.run.chunk, .batch = std::max(o.run.chunk, o.batch), .state = o.run.state});

  Progress progress("eval", std::ssize(queries));
  double log_likelihood = 0;
  int64_t greedy = 0;
  for (const Likelihood& one : log_likelihoods(engine, queries, [&](int64_t done) { progress.update(done); })) {
    log_likelihood += one.log_likelihood;
    greedy += one.greedy ? 1 : 0;
  }
  const auto n = static_cast<double>(queries.size());
  const double accuracy = static_cast<double>(greedy) / n, perplexity = std::exp(-log_likelihood / n);
  require(std::isfinite(perplexity), "eval: the perplexity must be finite, got ", -log_likelihood / n,
          " nats a passage");
  if (o.json) {
    return print_json(
        OrderedJson{{"task", *o.task}, {"n", queries.size()}, {"acc", accuracy}, {"perplexity", perplexity}});
  }
  print(concat("task        ", *o.task, "\nn           ", queries.size(), "\nacc         ", format("%.4f", accuracy),
               "\nperplexity  ", format("%.4f", perplexity), "\n"));
}

}  // namespace

Run prepare_eval(Flags& flags) {
  const auto o = std::make_shared<Options>();
  o->model.add(flags);
  o->model.add_tokenizer(flags);
  flags.text("--task", "NAME", o->task, "lambada_openai: the last word of a passage");
  flags.text("--data", "FILE", o->data, "Its passages: one {\"text\": ...} a line");
  flags.integer("--limit", o->limit, {1}, "The first N passages alone");
  flags.integer("--batch", o->batch, {1, 4096}, concat("Passages in one ragged batch (default: ", kDefaultBatch, ")"));
  o->run.add(flags);
  flags.flag("--json", o->json, "Print one JSON object");
  flags.footer(
      "acc: the share of passages whose last word is what the model would say greedily; perplexity: exp of the mean "
      "negative\nlog-likelihood of last words, tokens of one summed.");
  return [o] { run(*o); };
}

}  // namespace elapid::cli
