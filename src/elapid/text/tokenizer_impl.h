#pragma once

// What a loaded tokenizer is made of. Immutable: encoding and decoding run on chains made from it for each text.

#include "elapid/text/added_tokens.h"
#include "elapid/text/bpe.h"
#include "elapid/text/sentencepiece.h"
#include "elapid/text/stage.h"
#include "elapid/text/tokenizer.h"

#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace elapid {

struct Tokenizer::Impl {
  struct Entry {
    bool known = false;
    bool special = false;  // an added token marked as such
    bool skipped = false;  // is left out of a decoded text when special tokens are
    std::string spelling;  // as in the file
    std::string decoded;   // what the decoder sees
  };

  Impl(const Json& json, const std::string& what);
  Impl(const SentencePieceModel& model, const std::string& what);
  // add_bos_token, add_eos_token and eos_token of a tokenizer_config.json.
  void configure(const Json& config, const std::string& what);

  // What the decoder sees of an entry: nothing at all (nullopt), or an empty token, when special tokens are skipped.
  [[nodiscard]] std::optional<std::string_view> seen(const Entry& entry, bool skip_special_tokens) const {
    if (!skip_special_tokens || !entry.skipped) return entry.decoded;
    return skipped_end_bytes ? std::optional<std::string_view>("") : std::nullopt;
  }
  // The known entry of an id; an Error otherwise.
  [[nodiscard]] const Entry& entry(TokenId id) const;

  std::string what;
  AddedTokenSet raw_tokens, normalized_tokens;
  AddedTokenSet control_tokens;  // raw ones, looked for only when asked
  std::vector<StageFactory> normalizer;
  std::vector<StageFactory> pre_tokenizer;
  std::vector<StageFactory> decoder;
  bool skipped_end_bytes = false;  // bytes on both sides of a skipped token are no character: so in SentencePiece
  std::optional<Bpe> bpe;
  std::vector<TokenId> prefix, suffix;  // what the post-processor adds
  std::vector<TokenId> bos, eos;        // of a SentencePiece model, where the configuration names none
  std::optional<TokenId> named_eos;     // the configuration's
  std::vector<Entry> entries;           // by id
  std::unordered_map<std::string, TokenId> ids;

 private:
  void add_tokens(const Json& added);
  void read_post_processor(const Json& json, const std::string& where);
  void read_template(const Json& json, const std::string& where);
  [[nodiscard]] std::string normalized(std::string_view text) const;
};

}  // namespace elapid
