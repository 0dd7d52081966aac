#pragma once

// SentencePiece models (tokenizer.model): read by hand, so that a hostile one ends in an Error, and run on the stages
// that tokenizer.json runs on, so that both stream. BPE models without normalization tables, as all checkpoints of the
// Llama and Mistral lineages have them; others are refused by name.

#include "elapid/text/bpe.h"
#include "elapid/text/stage.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace elapid {

struct SentencePieceModel {
  enum class Type : uint8_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };
  struct Piece {
    std::string text;
    float score = 0;
    Type type = Type::normal;
  };

  std::vector<Piece> pieces;  // by id
  std::optional<TokenId> unknown, bos, eos;
  std::string unknown_surface = " \xE2\x81\x87 ";  // what the unknown piece decodes to
  bool byte_fallback = false;
  bool adds_prefix = true;  // a space in front of a text

  // From the bytes of a file; `what` names it in errors.
  static SentencePieceModel parse(std::string_view bytes, const std::string& what);

  [[nodiscard]] BpeParts bpe(const std::string& what) const;
  // Spaces as U+2581, one more in front.
  [[nodiscard]] StageFactory normalizer() const;
  [[nodiscard]] StageFactory decoder() const;
};

}  // namespace elapid
