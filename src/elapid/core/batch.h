#pragma once

// Batch: sequences end to end ("ragged"), as plain host tensors, and their copies on the device that runs. There is no
// padding and no mask anywhere below it.

#include "elapid/core/tensor.h"
#include "elapid/core/token.h"

#include <cstdint>

namespace elapid {

inline constexpr int64_t kNoSlot = -1;  // zero initial state, final state not kept

// A page of what attention remembers holds this many tokens of a sequence, from a multiple of it on.
inline constexpr int64_t kPageTokens = 64;

// A batch's arrays where kernels read them.
struct BatchArrays {
  Tensor tokens, offsets, slots, outputs, past;  // as in Batch
};

struct Batch {
  Tensor tokens;      // [T] i32: ids of all sequences, one after another; or none of them and …
  Tensor embeddings;  // … [T, d_model] f32, on the device: what stands in for the embedding table's rows
  Tensor offsets;     // [S+1] i64: sequence s holds tokens offsets[s] … offsets[s+1]; offsets[0] = 0, offsets[S] = T
  Tensor slots;       // [S] i64: row of the state pool that holds the sequence's state, or kNoSlot; no row twice
  Tensor outputs;     // [R] i64: rows (token positions in the batch) whose hidden state is wanted, increasing
  Tensor past;        // [S] i64: tokens that each sequence's state has consumed before, 0 for kNoSlot; or empty, for
                      // operators to which position is nothing
  // On a device, copies of the arrays in its memory. Operators that find none make their own.
  const BatchArrays* uploaded = nullptr;

  [[nodiscard]] int64_t token_count() const { return embeddings ? embeddings.rows() : tokens.size(); }
  [[nodiscard]] int64_t sequence_count() const { return slots.size(); }
};

}  // namespace elapid
