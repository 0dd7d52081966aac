#pragma once

// The "decoder" of a tokenizer file, as stages: pieces in are the tokens as the vocabulary spells them, what comes out
// in order is the text.

#include "elapid/io/json.h"
#include "elapid/text/stage.h"

#include <string>
#include <vector>

namespace elapid {

// A Sequence is flattened; null separates the tokens by spaces. An unknown type is an Error naming it.
std::vector<StageFactory> parse_decoder(const Json& json, const std::string& what);

}  // namespace elapid
