#pragma once

// TokenId: what a tokenizer makes of text and a model reads.

#include <cstdint>

namespace elapid {

using TokenId = int32_t;

}  // namespace elapid
