#pragma once

// The "normalizer" of a tokenizer file, as stages: text in, text out, piece by piece.

#include "elapid/io/json.h"
#include "elapid/text/stage.h"

#include <string>
#include <vector>

namespace elapid {

// In order; a Sequence is flattened, null is none. An unknown type is an Error naming it.
std::vector<StageFactory> parse_normalizer(const Json& json, const std::string& what);

// The Replace that normalizers and decoders share.
StageFactory parse_replace(const Json& json, const std::string& what);

// Every byte as the printable character that byte-level vocabularies spell it with.
StageFactory byte_level_spelling();

}  // namespace elapid
