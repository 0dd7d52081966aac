#pragma once

// The "pre_tokenizer" of a tokenizer file, as stages that cut pieces into words.

#include "elapid/io/json.h"
#include "elapid/text/stage.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace elapid {

struct PreTokenizer {
  std::vector<StageFactory> stages;
  // The words are meant to be spelled byte by byte for the model, as the last step; left to the model, which then works
  // on bytes.
  bool spells_bytes = false;
};

// A Sequence is flattened, null is none. An unknown type is an Error naming it.
PreTokenizer parse_pre_tokenizer(const Json& json, const std::string& what);

// GPT-2's pattern,
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
// by hand: the length of the match at the start of a non-empty text, or 0 when the text to come (there is more unless
// `last`) can change it. Every text is a sequence of matches.
size_t match_gpt2(std::string_view text, bool last);

}  // namespace elapid
