#pragma once

// What one sequence must remember between calls, block by block. Bodies declare their entries when the model is built;
// pools and snapshots follow from them.

#include "elapid/core/tensor.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace elapid {

// One memory of one layer, of numbers that are computed with in float32: of fixed size, for instance {"ssm", 3, {heads,
// head_dim, d_state}}, or growing by `shape` with every token, for instance {"key", 4, {kv_heads, head_dim},
// StateExtent::per_token}.
enum class StateExtent : uint8_t { fixed, per_token };

struct StateEntry {
  std::string kind;  // its name within the layer; no two alike
  int64_t layer = 0;
  Shape shape;
  StateExtent extent = StateExtent::fixed;
  bool recurrent = false;  // a recurrence's state, which a pool may hold in bf16

  [[nodiscard]] bool per_token() const { return extent == StateExtent::per_token; }
  // In float32.
  [[nodiscard]] int64_t bytes() const { return shape.size() * size_of(DType::f32); }
  // Whether they are the same memory.
  bool operator==(const StateEntry& other) const {
    return kind == other.kind && layer == other.layer && shape == other.shape && extent == other.extent;
  }
};

// A text that is computed when it is first asked for, and not again. Copies share it; any thread may ask.
class LazyText {
 public:
  LazyText() = default;
  // What std::function takes.
  template <class F>
  requires std::is_invocable_r_v<std::string, F&> LazyText(F compute)
      : shared_(std::make_shared<Shared>(std::move(compute))) {}

  std::string operator()() const {
    const std::lock_guard lock(shared_->mutex);
    if (!shared_->text) shared_->text = shared_->compute();
    return *shared_->text;
  }

 private:
  struct Shared {
    explicit Shared(std::function<std::string()> f) : compute(std::move(f)) {}
    std::function<std::string()> compute;
    std::mutex mutex;
    std::optional<std::string> text;
  };
  std::shared_ptr<Shared> shared_;
};

struct StateSpec {
  std::vector<StateEntry> entries;
  // Identifies config and weights of the model, as hexadecimal text. Computed when a state meets a file, not before:
  // it reads all weights once.
  LazyText fingerprint;

  // Bytes that one sequence needs in float32 whatever its length, and those that each of its tokens adds.
  [[nodiscard]] int64_t bytes_per_sequence() const { return bytes_of(StateExtent::fixed); }
  [[nodiscard]] int64_t bytes_per_token() const { return bytes_of(StateExtent::per_token); }

 private:
  [[nodiscard]] int64_t bytes_of(StateExtent extent) const {
    int64_t bytes = 0;
    for (const StateEntry& e : entries) bytes += e.extent == extent ? e.bytes() : 0;
    return bytes;
  }
};

}  // namespace elapid
