#pragma once

// What every operator with a memory checks about its batch and state.

#include "elapid/core/batch.h"

#include <string_view>

namespace elapid {

// offsets must begin with 0, not decrease and end with `tokens`; slots must be kNoSlot or a row of `state`, whose rows
// must have the shape `row` in f32. Errors begin with `op`.
void check_sequences(std::string_view op, const Batch& batch, int64_t tokens, const Tensor& state, Shape row);

}  // namespace elapid
