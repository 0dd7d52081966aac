#pragma once

// What every operator with a memory checks about its batch and state.

#include "elapid/core/batch.h"
#include "elapid/core/context.h"

#include <string_view>

namespace elapid {

// offsets must begin with 0, not decrease and end with `tokens`; slots must be kNoSlot or a row of `state`, whose rows
// must have the shape `row` in f32, or bf16 where that is allowed. Errors begin with `op`.
enum class StateTypes : uint8_t { f32, f32_or_bf16 };
void check_sequences(std::string_view op, const Batch& batch, int64_t tokens, const Tensor& state, Shape row,
                     StateTypes types = StateTypes::f32);
// The same with slots that must be kNoSlot or below `rows`.
void check_sequences(std::string_view op, const Batch& batch, int64_t tokens, int64_t rows);

// Tokens of the longest sequence, 0 when there is none.
int64_t longest_sequence(const Batch& batch);

// Keeps positions exact in float64, and sums of lengths within 64 bits.
inline constexpr int64_t kMostPast = int64_t{1} << 48;

// batch.past must have an element a sequence, ≥ 0 and 0 without a slot; it may be empty when no sequence has a slot.
void check_past(std::string_view op, const Batch& batch);

// What kernels of this context read; on the CPU the batch's own arrays. `batch.uploaded`, or copies in the arena.
BatchArrays arrays_of(const Context& ctx, const Batch& batch);

}  // namespace elapid
