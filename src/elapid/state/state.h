#pragma once

// State: an immutable snapshot of one sequence. Cheap to copy (shared), equal by content, written to and read from
// files.
//
// File format: safetensors with the tensors `state.{layer}.{kind}` (float32), `tokens` and `pending` (int64 ids), and
// the metadata {"format": "elapid.state", "version": "1", "fingerprint": hex, "dtype": "f32", "length": tokens consumed
// (as many as `tokens` has, when absent), "per_token": "{layer}.{kind} …" (absent when there are none), "checksum": a
// Hash of all values (not checked when absent)}. Tensors per token have the tokens as their first dimension.

#include "elapid/core/batch.h"
#include "elapid/core/buffer.h"
#include "elapid/io/file.h"
#include "elapid/state/spec.h"

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace elapid {

class State {
 public:
  // Ids that the state has consumed, and ids that follow them but were not fed to the model yet (the last token of a
  // generation): continuing begins with those.
  [[nodiscard]] std::span<const TokenId> tokens() const { return data_->tokens; }
  [[nodiscard]] std::span<const TokenId> pending() const { return data_->pending; }

  // How many tokens it has consumed: the position of the next one.
  [[nodiscard]] int64_t length() const { return data_->length; }

  // Entries by layer, and by kind within one. Fixed ones have the shape that the spec gives them, those per token
  // [length, shape…].
  [[nodiscard]] const StateEntry& declared(int64_t i) const { return data_->entries.at(static_cast<size_t>(i)); }
  [[nodiscard]] Tensor entry(int64_t i) const { return data_->tensors.at(static_cast<size_t>(i)); }
  [[nodiscard]] int64_t entry_count() const { return static_cast<int64_t>(data_->tensors.size()); }

  // Atomic: the file is the old or the whole new one.
  void write(const std::filesystem::path& path) const;
  // An Error when the file is not a state or is damaged; whether it belongs to a model shows in
  // StatePool::load().
  static State read(const std::filesystem::path& path);
  // From memory, for fuzzing; `what` names it in errors.
  static State parse(Bytes bytes, const std::string& what);

  // Same ids, entries and values, bit for bit.
  bool operator==(const State& other) const;

 private:
  friend class StatePool;
  struct Data {
    std::vector<StateEntry> entries;
    std::vector<Tensor> tensors;  // views of `memory`, dense f32
    Buffer memory;
    std::vector<TokenId> tokens, pending;
    int64_t length = 0;
    std::shared_ptr<const StateSpec> spec;  // the pool's, when the snapshot was taken in this process
    std::string fingerprint;                // the file's, when it was read
  };
  // A Hash of all values.
  static std::string checksum(const Data& data);
  // [tokens, shape…]
  static Shape with_tokens(int64_t tokens, const Shape& shape);
  explicit State(std::shared_ptr<const Data> data) : data_(std::move(data)) {}
  std::shared_ptr<const Data> data_;
};

}  // namespace elapid
