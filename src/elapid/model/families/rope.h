#pragma once

// Frequencies of rotary positions, as transformers' modeling_rope_utils.py computes them.

#include "elapid/io/json.h"
#include "elapid/nn/attention.h"

namespace elapid {

// Rotates the first `rotary_dim` elements of each head of `attention` (0: none) as `rope` says: rope_type (or "type")
// default, linear, llama3 or yarn, rope_theta, factor and what else that type needs. `max_positions` is the
// configuration's max_position_embeddings. Errors name `what` and the key.
void set_rope(AttentionConfig& attention, const Json& rope, int64_t rotary_dim, int64_t max_positions,
              const std::string& what);

}  // namespace elapid
