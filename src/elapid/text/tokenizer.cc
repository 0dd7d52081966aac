#include "elapid/text/tokenizer.h"

#include "elapid/core/error.h"
#include "elapid/io/file.h"
#include "elapid/io/json.h"
#include "elapid/text/decode.h"
#include "elapid/text/json_fields.h"
#include "elapid/text/normalize.h"
#include "elapid/text/pretokenize.h"
#include "elapid/text/tokenizer_impl.h"
#include "elapid/text/unicode.h"

#include <algorithm>
#include <memory>
#include <utility>

namespace elapid {
namespace {

constexpr int64_t kMaxFile = int64_t{1} << 28;

// Text → added tokens, normalizer, added tokens, pre-tokenizer, BPE → ids.
class EncodeChain {
 public:
  EncodeChain(const Tokenizer::Impl& impl, const EncodeOptions& options)
      : bpe_(*impl.bpe, output_), chain_(factories(impl, options, output_), bpe_) {
    chain_.front().begin(options.continues ? Origin::continued : Origin::text);
  }

  void feed(std::string_view text, bool last, std::vector<TokenId>& out) {
    output_.ids = &out;
    chain_.front().feed(text, last);
  }

 private:
  static std::vector<StageFactory> factories(const Tokenizer::Impl& impl, const EncodeOptions& options,
                                             TokenOutput& output) {
    std::vector<StageFactory> all;
    const auto add_tokens = [&](const AddedTokenSet& tokens) {
      if (tokens.empty()) return;
      all.emplace_back([&](Stage& next) { return std::make_unique<AddedTokenStage>(next, tokens, output); });
    };
    if (options.control_tokens) add_tokens(impl.control_tokens);
    add_tokens(impl.raw_tokens);
    all.insert(all.end(), impl.normalizer.begin(), impl.normalizer.end());
    add_tokens(impl.normalized_tokens);
    all.insert(all.end(), impl.pre_tokenizer.begin(), impl.pre_tokenizer.end());
    return all;
  }

  TokenOutput output_;
  BpeStage bpe_;
  Chain chain_;
};

void append(std::vector<TokenId>& out, const std::vector<TokenId>& ids) {
  out.insert(out.end(), ids.begin(), ids.end());
}

}  // namespace

Tokenizer::Impl::Impl(const Json& json, const std::string& name) : what(name) {
  require(json.is_object(), what, ": a tokenizer file must be an object, got ", json.type_name());
  if (has_field(json, "version")) {
    const std::string version = string_field(json, "version", what);
    require(version == "1.0", what, ": the version must be 1.0, got ", quote(version));
  }
  const Json none;
  const auto part = [&](const char* key) -> const Json& { return json.contains(key) ? json.at(key) : none; };
  normalizer = parse_normalizer(part("normalizer"), what + " normalizer");
  PreTokenizer words = parse_pre_tokenizer(part("pre_tokenizer"), what + " pre_tokenizer");
  pre_tokenizer = std::move(words.stages);
  decoder = parse_decoder(part("decoder"), what + " decoder");
  bpe.emplace(object_field(json, "model", what), words.spells_bytes, what + " model");

  for (const auto& [token, id] : bpe->vocabulary()) {
    if (static_cast<size_t>(id) >= entries.size()) entries.resize(static_cast<size_t>(id) + 1);
    entries[static_cast<size_t>(id)] = {true, false, false, token, token};
    ids.emplace(token, id);
  }
  add_tokens(part("added_tokens"));
  read_post_processor(part("post_processor"), what + " post_processor");
}

Tokenizer::Impl::Impl(const SentencePieceModel& model, const std::string& name) : what(name) {
  normalizer = {model.normalizer()};
  decoder = {model.decoder()};
  skipped_end_bytes = true;
  bpe.emplace(model.bpe(what));
  entries.resize(model.pieces.size());
  for (size_t i = 0; i < entries.size(); ++i) {
    const SentencePieceModel::Piece& piece = model.pieces[i];
    const auto id = static_cast<TokenId>(i);
    if (!ids.emplace(piece.text, id).second)
      fail(concat(what, ": pieces must differ, got ", quote(piece.text), " twice"));
    const bool control = piece.type == SentencePieceModel::Type::control;
    entries[i] = {true, control, control, piece.text, piece.text};
    if (piece.type == SentencePieceModel::Type::unknown) entries[i].decoded = model.unknown_surface;
    AddedToken token{.id = id, .content = piece.text, .special = control};
    if (control) control_tokens.add(token, piece.text, what);
    if (piece.type == SentencePieceModel::Type::user_defined) normalized_tokens.add(token, piece.text, what);
  }
  if (model.bos) bos = {*model.bos};
  if (model.eos) eos = {*model.eos};
  prefix = bos;
}

const Tokenizer::Impl::Entry& Tokenizer::Impl::entry(TokenId id) const {
  const bool inside = id >= 0 && static_cast<size_t>(id) < entries.size();
  require(inside && entries[static_cast<size_t>(id)].known, what, ": a token id must be one of the vocabulary's ",
          entries.size(), ", got ", id);
  return entries[static_cast<size_t>(id)];
}

std::string Tokenizer::Impl::normalized(std::string_view text) const {
  TextSink sink;
  const Chain chain(normalizer, sink);
  chain.front().begin(Origin::text);
  chain.front().feed(text, true);
  return sink.take();
}

void Tokenizer::Impl::add_tokens(const Json& added) {
  if (added.is_null()) return;
  require(added.is_array(), what, ": \"added_tokens\" must be an array, got ", added.type_name());
  // As in the reference, the ids of the file are not what counts: a token that the model has keeps the model's id, the
  // others are numbered on from the vocabulary's size.
  auto next_id = static_cast<TokenId>(bpe->vocabulary().size());
  std::unordered_map<TokenId, AddedToken> by_id;
  std::vector<TokenId> order;
  std::vector<std::string> special;
  for (const Json& item : added) {
    const std::string where = what + " added_tokens";
    AddedToken token;
    token.content = string_field(item, "content", where);
    token.special = bool_field(item, "special", false, where);
    token.normalized = bool_field(item, "normalized", !token.special, where);
    token.single_word = bool_field(item, "single_word", false, where);
    token.lstrip = bool_field(item, "lstrip", false, where);
    token.rstrip = bool_field(item, "rstrip", false, where);
    if (token.content.empty()) continue;
    const auto known = ids.find(token.content);
    token.id = known != ids.end() ? known->second : next_id++;
    ids.emplace(token.content, token.id);
    if (token.special) special.push_back(token.content);
    if (by_id.insert_or_assign(token.id, token).second) order.push_back(token.id);
  }
  for (const TokenId id : order) {
    const AddedToken& token = by_id.at(id);
    const std::string spelled = token.normalized ? normalized(token.content) : token.content;
    (token.normalized ? normalized_tokens : raw_tokens).add(token, spelled, what);
    if (static_cast<size_t>(id) >= entries.size()) entries.resize(static_cast<size_t>(id) + 1);
    entries[static_cast<size_t>(id)] = {true, token.special, false, token.content, spelled};
  }
  std::sort(special.begin(), special.end());
  for (Entry& entry : entries) {
    entry.skipped = entry.known && std::binary_search(special.begin(), special.end(), entry.decoded);
  }
}

void Tokenizer::Impl::read_post_processor(const Json& json, const std::string& where) {
  if (json.is_null()) return;
  const std::string type = string_field(json, "type", where);
  const std::string here = where + " " + type;
  if (type == "Sequence") {
    for (const Json& item : array_field(json, "processors", here)) read_post_processor(item, where);
  } else if (type == "TemplateProcessing") {
    require(prefix.empty() && suffix.empty(), where, ": two TemplateProcessing in a Sequence are not supported");
    read_template(json, here);
  } else {
    // ByteLevel only moves offsets, which are not computed here.
    require(type == "ByteLevel", where, ": the type ", quote(type), " is not supported");
  }
}

void Tokenizer::Impl::read_template(const Json& json, const std::string& where) {
  int64_t texts = 0;
  for (const Json& piece : array_field(json, "single", where)) {
    if (has_field(piece, "Sequence")) {
      const std::string id = string_field(piece.at("Sequence"), "id", where);
      require(id == "A" && ++texts == 1, where, ": \"single\" must have the sequence A once and no other, got ",
              quote(id));
      continue;
    }
    const std::string id = string_field(object_field(piece, "SpecialToken", where), "id", where);
    const Json& special = object_field(object_field(json, "special_tokens", where), id.c_str(), where);
    for (const Json& value : array_field(special, "ids", where)) {
      const int64_t token = json_integer(value, where + " id of " + quote(id), 0, std::ssize(entries) - 1);
      (void)entry(static_cast<TokenId>(token));
      (texts == 0 ? prefix : suffix).push_back(static_cast<TokenId>(token));
    }
  }
  require(texts == 1, where, ": \"single\" must have the sequence A once, got ", texts, " times");
}

void Tokenizer::Impl::configure(const Json& config, const std::string& where) {
  require(config.is_object(), where, ": must be an object, got ", config.type_name());
  if (const auto eos_token = config.find("eos_token"); eos_token != config.end()) {
    const Json& text = eos_token->is_object() ? eos_token->value("content", Json()) : *eos_token;
    const auto found = text.is_string() ? ids.find(text.get<std::string>()) : ids.end();
    if (found != ids.end()) named_eos = found->second;
  }
  // transformers 5 replaces the post-processor once either flag is given, and leaves out a token that has no name.
  if (!has_field(config, "add_bos_token") && !has_field(config, "add_eos_token")) return;
  const auto named = [&](const char* flag, const char* key, const std::vector<TokenId>& own,
                         bool otherwise) -> std::vector<TokenId> {
    if (!bool_field(config, flag, otherwise, where)) return {};
    if (!has_field(config, key)) return own;
    const Json& value = config.at(key);
    const std::string token =
        value.is_object() ? string_field(value, "content", where) : string_field(config, key, where);
    const auto found = ids.find(token);
    require(found != ids.end(), where, ": the ", key, " ", quote(token), " is not in the vocabulary");
    return {found->second};
  };
  prefix = named("add_bos_token", "bos_token", bos, !bos.empty());
  suffix = named("add_eos_token", "eos_token", eos, false);
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

std::optional<std::filesystem::path> Tokenizer::find(const std::filesystem::path& folder) {
  std::error_code ignored;
  for (const char* const name : {"tokenizer.json", "tokenizer.model.v3", "tokenizer.model"}) {
    if (std::filesystem::exists(folder / name, ignored)) return folder / name;
  }
  return {};
}

Tokenizer Tokenizer::load(const std::filesystem::path& folder_or_file) {
  std::error_code ignored;
  std::filesystem::path file = folder_or_file;
  if (std::filesystem::is_directory(folder_or_file, ignored)) {
    const auto found = find(folder_or_file);
    require(found.has_value(), folder_or_file.string(),
            ": must have tokenizer.json, tokenizer.model.v3 or tokenizer.model, got none of them (for a raw "
            "state-spaces folder, the tokenizer.json of EleutherAI/gpt-neox-20b)");
    file = *found;
  }
  const std::string content = read_text_file(file, kMaxFile);
  const bool model = file.filename().string().find(".model") != std::string::npos;
  Tokenizer tokenizer = model ? parse_sentencepiece(content, file.string()) : parse(content, file.string());
  const std::filesystem::path config = file.parent_path() / "tokenizer_config.json";
  // A link that leads nowhere is a file that cannot be read, not an absent one.
  if (std::filesystem::symlink_status(config, ignored).type() != std::filesystem::file_type::not_found) {
    tokenizer.impl_->configure(parse_json(read_text_file(config, kMaxFile), config.string()), config.string());
  }
  return tokenizer;
}

Tokenizer Tokenizer::parse(std::string_view json, const std::string& what) {
  return Tokenizer(std::make_unique<Impl>(parse_json(json, what), what));
}

Tokenizer Tokenizer::parse_sentencepiece(std::string_view bytes, const std::string& what) {
  return Tokenizer(std::make_unique<Impl>(SentencePieceModel::parse(bytes, what), what));
}

std::vector<TokenId> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  const size_t valid = unicode::valid_utf8_prefix(text);
  require(valid == text.size(), "encode: the text must be valid UTF-8, got an invalid byte at offset ", valid);
  std::vector<TokenId> out;
  out.reserve(text.size() / 4 + 8);
  const bool special = options.add_special_tokens && !options.continues;
  if (special) append(out, impl_->prefix);
  EncodeChain chain(*impl_, options);
  chain.feed(text, true, out);
  if (special) append(out, impl_->suffix);
  return out;
}

std::string Tokenizer::decode(std::span<const TokenId> ids, bool skip_special_tokens) const {
  TextSink sink;
  const Chain chain(impl_->decoder, sink);
  for (const TokenId id : ids) {
    const auto token = impl_->seen(impl_->entry(id), skip_special_tokens);
    if (!token) continue;
    chain.front().begin(Origin::behind);
    chain.front().feed(*token, true);
  }
  chain.front().finish();
  return sink.take();
}

int64_t Tokenizer::vocab_size() const { return std::ssize(impl_->entries); }

std::optional<TokenId> Tokenizer::token_to_id(std::string_view token) const {
  const auto found = impl_->ids.find(std::string(token));
  return found == impl_->ids.end() ? std::nullopt : std::optional(found->second);
}

std::string_view Tokenizer::id_to_token(TokenId id) const { return impl_->entry(id).spelling; }

bool Tokenizer::is_special(TokenId id) const { return impl_->entry(id).special; }

std::optional<TokenId> Tokenizer::end_of_text() const {
  if (impl_->named_eos) return impl_->named_eos;
  if (!impl_->eos.empty()) return impl_->eos.front();
  const std::optional<TokenId> usual = token_to_id("<|endoftext|>");
  return usual && is_special(*usual) ? usual : std::nullopt;
}

struct EncodeStream::Impl {
  Impl(const Tokenizer& tokenizer, EncodeOptions options) : chain(tokenizer.impl(), options) {
    if (!options.add_special_tokens || options.continues) return;
    prefix = tokenizer.impl().prefix;
    suffix = tokenizer.impl().suffix;
  }

  // Checks and encodes whole characters; what is left is the beginning of one.
  std::string_view feed(std::string_view text, std::vector<TokenId>& out) {
    const size_t valid = unicode::valid_utf8_prefix(text);
    const std::string_view rest = text.substr(valid);
    require(rest.empty() || unicode::utf8_step(rest).kind == unicode::Utf8Step::incomplete,
            "encode: the text must be valid UTF-8, got an invalid byte at offset ", offset + valid);
    if (valid > 0) chain.feed(text.substr(0, valid), false, out);
    offset += valid;
    return rest;
  }

  EncodeChain chain;
  std::vector<TokenId> prefix, suffix;
  std::string unfinished;  // the first bytes of a character
  size_t offset = 0;       // of `unfinished` in the whole text
  bool started = false, finished = false;
};

EncodeStream::EncodeStream(const Tokenizer& tokenizer, EncodeOptions options)
    : impl_(std::make_unique<Impl>(tokenizer, options)) {}
EncodeStream::EncodeStream(EncodeStream&&) noexcept = default;
EncodeStream::~EncodeStream() = default;

void EncodeStream::push(std::string_view piece, std::vector<TokenId>& out) {
  Impl& impl = *impl_;
  require(!impl.finished, "encode stream: push() after finish()");
  if (!std::exchange(impl.started, true)) append(out, impl.prefix);
  // A character that the pieces' border cuts is completed byte by byte.
  while (!impl.unfinished.empty() && !piece.empty()) {
    impl.unfinished.push_back(piece.front());
    piece.remove_prefix(1);
    impl.unfinished = std::string(impl.feed(impl.unfinished, out));
  }
  impl.unfinished += impl.feed(piece, out);
}

void EncodeStream::finish(std::vector<TokenId>& out) {
  Impl& impl = *impl_;
  push({}, out);
  impl.finished = true;
  require(impl.unfinished.empty(), "encode: the text must be valid UTF-8, got an unfinished character at offset ",
          impl.offset);
  impl.chain.feed({}, true, out);
  append(out, impl.suffix);
}

}  // namespace elapid
