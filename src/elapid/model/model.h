#pragma once

// Model: embedding, blocks, final norm and head, with the memory of its weights. Immutable after loading; any number of
// threads and engines may run it at once, each with its own Context and StatePool.

#include "elapid/core/buffer.h"
#include "elapid/io/file.h"
#include "elapid/model/config.h"
#include "elapid/nn/block.h"

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace elapid {

// What matrices are held in and multiplied in.
enum class Precision : uint8_t {
  f32,   // as stored, float32 arithmetic
  bf16,  // bf16 weights and inputs, float32 sums
  int8,  // bf16 inputs, weights as in ops/matmul/quantized.h; matrices of few inputs stay bf16
  int4,  // likewise; the head is int8
};
std::string_view name_of(Precision precision);

class Model {
 public:
  // Parameters without values; load.h fills them.
  explicit Model(ModelConfig config);
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  // The hidden states after the final norm of the rows in pass.batch.outputs: [R, d_model] f32, in ctx.arena.
  Tensor hidden(Context& ctx, const Pass& pass) const;
  // hidden [R, d_model] f32 → [R, vocab] f32.
  Tensor logits(Context& ctx, const Tensor& hidden) const;

  [[nodiscard]] const ModelConfig& config() const { return config_; }
  [[nodiscard]] std::shared_ptr<const StateSpec> state_spec() const { return spec_; }

  // Every parameter once, in a fixed order.
  void visit(const ParameterVisitor& f);

  // Facts about the weights in memory.
  struct Weights {
    int64_t parameters = 0;       // elements
    int64_t bytes = 0;            // as stored in the checkpoint
    int64_t bytes_per_token = 0;  // read to decode one token of one sequence
    int64_t matrix_elements = 0;  // that multiply every token, without embedding and head
    std::vector<std::pair<std::string_view, int64_t>> elements_by_dtype;  // as stored
    Precision precision = Precision::f32;                                 // the lowest of any matrix
  };
  [[nodiscard]] const Weights& weights() const { return weights_; }
  // Where the weights are, and hence where it runs.
  [[nodiscard]] Device device() const { return memory_.device(); }
  // Bytes of its own memory there.
  [[nodiscard]] int64_t memory_bytes() const { return memory_.bytes(); }

 private:
  friend class ModelBuilder;

  ModelConfig config_;
  std::shared_ptr<StateSpec> spec_;
  Param embedding_, head_;  // a tied head is the embedding's values, packed
  Norm norm_;
  bool reads_embedding_ = false, has_side_ = false;  // some block does
  std::vector<Block> blocks_;
  Weights weights_;
  Buffer memory_;                                         // packed matrices and float32 vectors, unless a file has them
  std::vector<std::shared_ptr<const MappedFile>> files_;  // that one, and what unpacked tables view
};

}  // namespace elapid
