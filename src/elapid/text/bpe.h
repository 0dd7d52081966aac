#pragma once

// The byte-pair encoding of words: a word's characters (or bytes), merged pair by pair in the order of the merges'
// ranks, the leftmost of equals first.

#include "elapid/io/json.h"
#include "elapid/text/added_tokens.h"
#include "elapid/text/flat_map.h"
#include "elapid/text/stage.h"

#include <array>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace elapid {

// A vocabulary and its merges in whatever form a file has them.
struct BpeParts {
  struct Merge {
    TokenId left = 0, right = 0, result = 0;
    int32_t rank = 0;  // several may be equal: the leftmost in the text is first then
  };
  std::unordered_map<std::string, TokenId> vocabulary;
  std::vector<Merge> merges;
  std::array<int64_t, 256> byte_tokens{};  // what stands for the bytes of an unknown character, or -1
  std::optional<TokenId> unknown;          // several in a row are one
};

class Bpe {
 public:
  // The "model" of a tokenizer file. `spells_bytes`: words are byte strings whose bytes the vocabulary spells as in
  // byte_level.h.
  Bpe(const Json& json, bool spells_bytes, const std::string& what);
  explicit Bpe(BpeParts parts);

  // As in the file.
  [[nodiscard]] const std::unordered_map<std::string, TokenId>& vocabulary() const { return vocabulary_; }

  // Appends the ids of one whole word. Linear in its length but for a logarithm; short words are remembered (a bounded
  // cache per thread).
  void encode(std::string_view word, std::vector<TokenId>& out) const;

  // How much of a long word that goes on can be encoded by encode_part() whatever follows; the same is done inside
  // encode().
  [[nodiscard]] size_t certain_part(std::string_view word) const;
  void encode_part(std::string_view part, std::vector<TokenId>& out) const;

 private:
  struct Merge {
    int32_t rank = 0;
    TokenId token = 0;
  };
  // What a character (or byte) becomes before merging.
  struct Unit {
    enum Kind : uint8_t { token, bytes, unknown } kind = unknown;
    TokenId id = 0;                 // of a token
    std::vector<TokenId> fallback;  // the bytes' tokens
  };

  void read_merges(const Json& merges, const std::string& what);
  void fill_units();
  void fill_bigrams() const;
  [[nodiscard]] Unit make_unit(const std::string& spelling) const;
  [[nodiscard]] Unit unit_at(std::string_view word, size_t at, size_t length) const;
  [[nodiscard]] size_t unit_length(std::string_view word, size_t at) const;
  [[nodiscard]] const Merge* merge_of(TokenId left, TokenId right) const;
  void append_symbols(std::string_view word, std::vector<TokenId>& symbols) const;
  void merge_short(std::vector<TokenId>& symbols) const;
  void merge_long(std::vector<TokenId>& symbols) const;
  // `whole`: a word, not a part of one.
  void encode_small(std::string_view word, bool whole, std::vector<TokenId>& out) const;
  void encode_uncached(std::string_view word, bool whole, std::vector<TokenId>& out) const;
  template <class Cut>
  void for_each_cut(std::string_view word, const Cut& cut) const;

  std::unordered_map<std::string, TokenId> vocabulary_;
  std::unordered_map<std::string, TokenId> whole_words_;  // what ignore_merges looks words up in
  FlatMap<Merge> merges_;
  bool spells_bytes_;
  bool ignore_merges_ = false;
  bool fuse_unknown_ = false;
  std::optional<TokenId> unknown_;
  std::string prefix_, suffix_;            // of a character inside a word, and of a word's last
  std::array<int64_t, 256> byte_token_{};  // "<0xAB>", or -1
  std::array<Unit, 256> byte_unit_;        // when words are byte strings
  FlatMap<TokenId> character_token_;       // when they are not: the characters that are tokens
  size_t longest_token_ = 0;
  uint32_t cache_owner_ = 0;  // the next number is that of parts of words
  bool can_cut_ = false;
  // Pairs of neighbouring units in the tokens that merges make. No merge ever joins two units that are no such pair.
  mutable std::once_flag bigrams_once_;
  mutable FlatMap<bool> bigrams_;
  std::vector<TokenId> merge_results_;
};

// The last stage of encoding: pieces are words.
class BpeStage final : public Stage {
 public:
  BpeStage(const Bpe& bpe, TokenOutput& output) : Stage(nullptr), bpe_(&bpe), output_(&output) {}
  void begin(Origin) override {}
  void feed(std::string_view text, bool last) override;
  void finish() override {}

 private:
  const Bpe* bpe_;
  TokenOutput* output_;
  std::string held_;
  size_t look_again_ = 0;
  bool in_parts_ = false;  // some of the word was encoded
};

}  // namespace elapid
