#pragma once

// Tokens that are found in the text itself, before any model sees it: special ones and others.

#include "elapid/text/flat_map.h"
#include "elapid/text/stage.h"
#include "elapid/text/tokenizer.h"

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace elapid {

struct AddedToken {
  TokenId id = 0;
  std::string content;
  bool single_word = false;  // matches only between characters that are not part of words
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // and after it
  bool normalized = true;    // is looked for in the normalized text
  bool special = false;
};

// A set of added tokens to look for, leftmost first, the longest of several that begin together.
class AddedTokenSet {
 public:
  // `pattern` is what spells the token: its content, normalized or not. `what` names the file in errors.
  void add(const AddedToken& token, std::string_view pattern, const std::string& what);

  [[nodiscard]] bool empty() const { return tokens_.empty(); }
  [[nodiscard]] bool any_lstrip() const { return any_lstrip_; }
  [[nodiscard]] const AddedToken& operator[](int32_t index) const { return tokens_[static_cast<size_t>(index)]; }

  struct Match {
    enum Kind { none, partial, found } kind = none;
    size_t begin = 0, end = 0;
    int32_t token = 0;
  };
  // The first match at or after `from`; partial when the text ends where a longer one could go on.
  [[nodiscard]] Match find(std::string_view text, size_t from, bool last) const;

 private:
  static constexpr int32_t kRoot = 0;
  static uint64_t edge(int32_t node, char byte) {
    return static_cast<uint64_t>(node) << 8 | static_cast<unsigned char>(byte);
  }

  std::vector<AddedToken> tokens_;
  std::vector<int32_t> token_at_{-1};  // of a trie node, -1: none
  std::vector<bool> inner_{false};     // whether a trie node has children
  FlatMap<int32_t> children_;
  std::array<bool, 256> first_byte_{};
  bool any_lstrip_ = false;
};

// Where the ids of one text go.
struct TokenOutput {
  std::vector<TokenId>* ids = nullptr;
};

// Cuts pieces at the added tokens in them; the tokens' ids go to the output, what is between them to the next stage.
class AddedTokenStage final : public BufferedStage {
 public:
  AddedTokenStage(Stage& next, const AddedTokenSet& tokens, TokenOutput& output)
      : BufferedStage(&next), tokens_(&tokens), output_(&output) {}

  void begin(Origin origin) override;

 private:
  size_t process(std::string_view text, bool last) override;
  // Hands on text as part of the current segment.
  void emit(std::string_view text, bool ends);

  const AddedTokenSet* tokens_;
  TokenOutput* output_;
  Origin origin_ = Origin::behind;
  bool in_segment_ = false;
  bool piece_began_ = false;  // something of the piece was taken: what follows is not at the origin
  bool after_word_ = false;   // the text to be shown next follows a word character
  // In the text to be shown next: where what is not handed on begins, and where to look for tokens. The latter can be
  // behind (white space that was held back) or ahead (white space that a token took).
  size_t pending_ = 0;
  size_t search_ = 0;
};

}  // namespace elapid
