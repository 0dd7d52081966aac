#include "elapid/cli/command.h"
#include "elapid/cli/input.h"
#include "elapid/cli/model_options.h"
#include "elapid/cli/output.h"

#include <optional>

namespace elapid::cli {
namespace {

struct Options {
  ModelOptions model;
  std::vector<std::string> files;
  bool decode = false, no_special = false, json = false;
};

// Lines of standard input as they come, the last one with or without its line end; results leave as the input pauses.
void each_line(const std::function<std::string(std::string_view)>& convert) {
  TextReader reader({});
  std::string rest;
  for (std::string_view piece = reader.next(); !piece.empty(); piece = reader.next()) {
    std::string out;
    for (size_t end; (end = piece.find('\n')) != std::string_view::npos; piece.remove_prefix(end + 1)) {
      rest += piece.substr(0, end);
      out += convert(rest) + "\n";
      rest.clear();
    }
    rest += piece;
    print(out);
  }
  if (!rest.empty()) print(convert(rest) + "\n");
}

void run(const Options& o) {
  std::vector<std::string> texts;
  for (const std::string& file : o.files) texts.push_back(read_text(file));
  if (o.json && o.files.empty()) texts.push_back(read_text({}));
  const Tokenizer tokenizer = o.model.load_tokenizer(o.model.tokenizer ? std::filesystem::path() : o.model.folder());
  const auto encode = [&](std::string_view text) {
    return tokenizer.encode(text, {.add_special_tokens = !o.no_special});
  };
  const auto ids_in = [](std::string_view text) { return parse_ids(text, "tokenize --decode"); };

  // One text; lines are separate texts only in the stream that has no other bounds.
  const auto whole = [&](std::string_view text) {
    const std::vector<TokenId> ids = o.decode ? ids_in(text) : encode(text);
    if (!o.json) return print(o.decode ? tokenizer.decode(ids) : join(ids) + "\n");
    OrderedJson tokens = OrderedJson::array();
    for (const TokenId id : ids) tokens.push_back(tokenizer.id_to_token(id));
    OrderedJson json = {{"ids", ids}, {"tokens", std::move(tokens)}};
    if (o.decode) json["text"] = tokenizer.decode(ids);
    print_json(json);
  };
  for (const std::string& text : texts) whole(text);
  if (!texts.empty()) return;
  each_line([&](std::string_view line) { return o.decode ? tokenizer.decode(ids_in(line)) : join(encode(line)); });
}

}  // namespace

Run prepare_tokenize(Flags& flags) {
  const auto o = std::make_shared<Options>();
  o->model.add(flags);
  o->model.add_tokenizer(flags);
  flags.repeatable("--file", "F", o->files,
                   "Take the whole of F as one text (default: each line of standard input is one); of several, each");
  flags.flag("--decode", o->decode, "Ids to text, special tokens left out; with --file exactly, no line end added");
  flags.flag("--no-special", o->no_special, "Leave out what the tokenizer adds, such as a leading bos");
  flags.flag("--json", o->json, "Print one JSON object, also of standard input as one text");
  return [o] { run(*o); };
}

}  // namespace elapid::cli
