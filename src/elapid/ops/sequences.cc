#include "elapid/ops/sequences.h"

#include "elapid/core/error.h"

namespace elapid {

void check_sequences(std::string_view op, const Batch& batch, int64_t tokens, const Tensor& state, Shape row,
                     StateTypes types) {
  int64_t rows = 0;
  if (state) {
    const bool bf16 = types == StateTypes::f32_or_bf16;
    require((state.dtype == DType::f32 || (bf16 && state.dtype == DType::bf16)) && state.shape.rank == row.rank + 1, op,
            ": state must be ", bf16 ? "f32 or bf16" : "f32", " of rank ", row.rank + 1, ", got ", name_of(state.dtype),
            " of rank ", state.shape.rank);
    for (int i = 0; i < row.rank; ++i) {
      require(state.shape[i + 1] == row[i], op, ": state dimension ", i + 1, " must be ", row[i], ", got ",
              state.shape[i + 1]);
    }
    rows = state.shape[0];
  }
  check_sequences(op, batch, tokens, rows);
}

void check_sequences(std::string_view op, const Batch& batch, int64_t tokens, int64_t rows) {
  const int64_t sequences = batch.sequence_count();
  require(batch.offsets.size() == sequences + 1, op, ": offsets must have ", sequences + 1, " elements, got ",
          batch.offsets.size());
  const int64_t* offsets = batch.offsets.ptr<int64_t>();
  require(offsets[0] == 0 && offsets[sequences] == tokens, op, ": offsets must run from 0 to ", tokens, ", got ",
          offsets[0], " to ", offsets[sequences]);
  for (int64_t s = 0; s < sequences; ++s) {
    require(offsets[s] <= offsets[s + 1], op, ": offsets must not decrease, got ", offsets[s], " before ",
            offsets[s + 1]);
    const int64_t slot = batch.slots.ptr<int64_t>()[s];
    require(slot == kNoSlot || (slot >= 0 && slot < rows), op, ": slots must be -1 or a row of the state (", rows,
            "), got ", slot);
  }
}

void check_past(std::string_view op, const Batch& batch) {
  const int64_t sequences = batch.sequence_count();
  require(!batch.past || batch.past.size() == sequences, op, ": past must have ", sequences, " elements, got ",
          batch.past.size());
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t slot = batch.slots.ptr<int64_t>()[s];
    require(batch.past || slot == kNoSlot, op, ": past must be there for sequences with a slot, got none");
    const int64_t past = batch.past ? batch.past.ptr<int64_t>()[s] : 0;
    require(past == 0 || (past > 0 && past <= kMostPast && slot != kNoSlot), op, ": past must be 0 to ", kMostPast,
            ", and 0 without a slot, got ", past);
  }
}

int64_t longest_sequence(const Batch& batch) {
  int64_t longest = 0;
  const int64_t* offsets = batch.offsets.ptr<int64_t>();
  for (int64_t s = 0; s < batch.sequence_count(); ++s) {
    const int64_t length = offsets[s + 1] - offsets[s];
    if (length > longest) longest = length;
  }
  return longest;
}

BatchArrays arrays_of(const Context& ctx, const Batch& batch) {
  if (batch.uploaded != nullptr) return *batch.uploaded;
  return {upload_values(ctx, batch.tokens), upload_values(ctx, batch.offsets), upload_values(ctx, batch.slots),
          upload_values(ctx, batch.outputs), upload_values(ctx, batch.past)};
}

}  // namespace elapid
