#pragma once

// Text ↔ token ids, as a checkpoint's tokenizer.json (the `tokenizers` package's format) says, byte for byte: BPE
// models with the added tokens, normalizers, pre-tokenizers, post-processors and decoders that go with them. Or as its
// SentencePiece model says (see sentencepiece.h).
// "truncation" and "padding" are properties of a caller's batch, not of the text, and are not applied (transformers
// resets them, too).

#include "elapid/core/token.h"

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace elapid {

struct EncodeOptions {
  // What the post-processor adds (a leading bos, say); never what the text itself spells.
  bool add_special_tokens = true;
  // Of a SentencePiece model: a control token that the text spells is that token, as in a rendered chat template,
  // rather than the letters. A tokenizer.json says that itself.
  bool control_tokens = false;
  // The text goes on from another one: nothing is put in front of it, neither special tokens nor the space that stands
  // for the beginning of a text, and no special tokens behind it.
  bool continues = false;
};

class Tokenizer {
 public:
  // A folder with tokenizer.json, else tokenizer.model.v3, else tokenizer.model, or such a file itself. An Error names
  // what the engine does not know rather than guessing. A tokenizer_config.json beside it counts as it does in
  // transformers 5: once it says add_bos_token or add_eos_token (true or false), exactly the bos_token and eos_token
  // that they ask for are added, in place of the file's post-processor. A SentencePiece model adds its bos unless
  // add_bos_token is false.
  static Tokenizer load(const std::filesystem::path& folder_or_file);
  // The file in a folder that load() would take.
  static std::optional<std::filesystem::path> find(const std::filesystem::path& folder);
  // From the bytes of a tokenizer.json; `what` names it in errors.
  static Tokenizer parse(std::string_view json, const std::string& what);
  // From the bytes of a SentencePiece model.
  static Tokenizer parse_sentencepiece(std::string_view bytes, const std::string& what);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // Invalid UTF-8 in `text` is an Error naming the offset. Time is linear in the text's length (up to a logarithm).
  [[nodiscard]] std::vector<TokenId> encode(std::string_view text, EncodeOptions options = {}) const;

  // Ids → text; tokens that are special are left out when asked. Bytes that are not valid UTF-8 come out as U+FFFD, as
  // in the `tokenizers` package. An id outside the vocabulary is an Error.
  [[nodiscard]] std::string decode(std::span<const TokenId> ids, bool skip_special_tokens = true) const;

  [[nodiscard]] int64_t vocab_size() const;  // one more than the largest id
  [[nodiscard]] std::optional<TokenId> token_to_id(std::string_view token) const;
  [[nodiscard]] std::string_view id_to_token(TokenId id) const;  // as spelled in the file; an Error when unknown
  [[nodiscard]] bool is_special(TokenId id) const;
  // What ends a text: the eos_token of tokenizer_config.json, else a SentencePiece model's, else the special token
  // <|endoftext|>; nothing when there is none of them.
  [[nodiscard]] std::optional<TokenId> end_of_text() const;

  struct Impl;
  [[nodiscard]] const Impl& impl() const { return *impl_; }

 private:
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Encodes a text that arrives in pieces: the ids are those of encode() over the concatenation, for any way of cutting
// (also within a UTF-8 character). Ids leave as soon as no text to come can change them, so that memory is bounded by
// the piece size and by the longest stretch that is undecided: a word, white space, a character with its marks, what
// may become an added token. A word is cut further where its characters never meet in a merge, so that a tokenizer
// without pre-tokenizer streams as well; one endless word of a single letter is kept until it ends.
class EncodeStream {
 public:
  explicit EncodeStream(const Tokenizer& tokenizer, EncodeOptions options = {});
  EncodeStream(EncodeStream&&) noexcept;
  ~EncodeStream();

  // Appends the ids that are certain by now to `out`.
  void push(std::string_view piece, std::vector<TokenId>& out);
  void finish(std::vector<TokenId>& out);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace elapid
