#pragma once

// What every operator with a memory checks about its batch and state.

#include "elapid/core/batch.h"

#include <string_view>

namespace elapid {

// offsets must begin with 0, not decrease and end with `tokens`; slots must be kNoSlot or a row of `state`, whose rows
// must have the shape `row` in f32, or bf16 where that is allowed. Errors begin with `op`.
enum class StateTypes : uint8_t { f32, f32_or_bf16 };
void check_sequences(std::string_view op, const Batch& batch, int64_t tokens, const Tensor& state, Shape row,
                     StateTypes types = StateTypes::f32);
// The same with slots that must be kNoSlot or below `rows`.
void check_sequences(std::string_view op, const Batch& batch, int64_t tokens, int64_t rows);

// Keeps positions exact in float64, and sums of lengths within 64 bits.
inline constexpr int64_t kMostPast = int64_t{1} << 48;

// batch.past must have an element a sequence, ≥ 0 and 0 without a slot; it may be empty when no sequence has a slot.
void check_past(std::string_view op, const Batch& batch);

}  // namespace elapid
