#pragma once

// Engine: runs one model for one caller, on the device that holds the model. What it hands out is host memory. Owns
// what running needs (threads, arena, states, batch arrays); a step whose shape has been seen before allocates nothing.
// Scheduling many callers is not its business.

#include "elapid/model/model.h"
#include "elapid/state/pool.h"

#include <functional>
#include <map>
#include <optional>
#include <span>
#include <vector>

namespace elapid {

struct EngineOptions {
  int64_t slots = 1;
  // A sequence runs in pieces of at most this many tokens, cut at its own multiples whatever its neighbours are: bounds
  // activation memory. Another chunk changes results by float32 rounding at most; the neighbours change nothing.
  int64_t chunk = 512;
  // Pieces of several sequences share a forward call while they hold at most this many tokens together. 0: `chunk`.
  int64_t batch = 0;
  // What recurrences' states are held in between forward calls: f32, or bf16 for half of the memory traffic of a decode
  // step's states. Every forward call rounds them once.
  DType state = DType::f32;
  // Called before each forward call of a call but its first. What it throws ends the call; the slots have then consumed
  // some of their tokens.
  std::function<void()> between{};
};

// One sequence's part of a call.
struct Input {
  std::span<const TokenId> tokens;  // at least one
  int64_t slot = kNoSlot;           // without a slot, a zero state: at most one chunk of tokens
  int64_t rows_from = 0;            // all_logits() hands out the rows of tokens from here on
  // In place of ids, [T, d_model] f32, dense: vectors that take the place of the embedding table's rows. All inputs of
  // a call have ids, or all have embeddings.
  Tensor embeddings = {};

  [[nodiscard]] int64_t length() const { return embeddings ? embeddings.rows() : static_cast<int64_t>(tokens.size()); }
};

// Consecutive tokens of one input of a call: `count` of them, from its token `first` on.
struct Piece {
  int64_t input = 0, first = 0, count = 0;
};

class Engine {
 public:
  // `model` and `threads` must outlive the engine.
  Engine(const Model& model, ThreadPool& threads, const EngineOptions& options = {});
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Feeds every input's tokens to its slot and returns the logits after the last token of each: [inputs, vocab] f32,
  // valid until the next call. A slot may appear once.
  Tensor last_logits(std::span<const Input> inputs);

  // Receives rows piece by piece, each input's in order; tensors are valid during the call only.
  struct Visitor {
    // After the final norm [count, d_model], and the logits [count, vocab], of the tokens from rows_from on.
    std::function<void(const Piece&, const Tensor& hidden, const Tensor& logits)> rows;
    // The rest may be empty. The residual stream [count, d_model] and what routers say [count, experts], as Observer
    // sees them.
    std::function<void(const Piece&, int64_t layer, const Tensor& residual)> residual;
    std::function<void(const Piece&, int64_t layer, const Tensor& logits)> router_logits;
    // Attention weights [heads, count, first + count] of a piece that is its sequence's next.
    std::function<void(const Piece&, int64_t layer, const Tensor& weights)> attentions;
  };
  // Feeds every input's tokens to its slot and hands out the rows that are wanted. At most `rows` rows of logits exist
  // at a time.
  void all_logits(std::span<const Input> inputs, const Visitor& visitor, int64_t rows = 64);

  [[nodiscard]] StatePool& states() { return states_; }
  [[nodiscard]] const Model& model() const { return *model_; }
  [[nodiscard]] const EngineOptions& options() const { return options_; }
  // Where the model runs.
  [[nodiscard]] Context context() {
    return {device_, *threads_, arena_, nullptr, stream_.handle(), room_, activations_};
  }
  // For operators on what the engine hands out.
  [[nodiscard]] Context host_context() { return {{}, *threads_, host_arena_ ? *host_arena_ : arena_}; }
  [[nodiscard]] Arena& arena() { return arena_; }

 private:
  void begin(std::span<const Input> inputs);
  bool next_pieces(std::span<const Input> inputs);
  Tensor given_embeddings(std::span<const Input> inputs);
  Batch gather(std::span<const Input> inputs);
  Tensor run(std::span<const Input> inputs, const Observer* observer);
  void advance();
  void upload(const Batch& batch);
  void fill_uploaded(const Batch& batch);
  [[nodiscard]] bool replayable(std::span<const Input> inputs) const;
  Tensor replay(std::span<const Input> inputs);
  Tensor on_host(const Tensor& t, HostRoom& room);

  const Model* model_;
  ThreadPool* threads_;
  EngineOptions options_;
  Device device_;
  DType activations_;
  Stream stream_;
  Arena arena_;
  std::optional<Arena> host_arena_;       // on a device alone
  HostRoom tables_, seen_, seen_hidden_;  // of the forward call, and of what a visitor sees
  HostRoom* room_ = &tables_;             // where operators put their tables now
  Tensor batch_room_;                     // of these, the batch's arrays
  BatchArrays uploaded_;
  // On a device, one token of each of so many sequences: the kernels of a step at the addresses of every such step, and
  // the host memory that it copies from and to.
  struct Step {
    int64_t calls = 0;
    HostRoom room;
    Tensor batch_room, logits;
    Graph graph;
  };
  std::map<int64_t, Step> steps_;  // by sequences
  StatePool states_;
  // Of the forward call being built: reused, so that they stop growing.
  std::vector<Piece> pieces_, wanted_;
  std::vector<TokenId> tokens_;
  std::vector<int64_t> offsets_, slots_, past_, outputs_;
  // Of the whole call.
  std::vector<int64_t> fed_;  // tokens of each input that earlier forward calls took
  bool under_way_ = false;
  std::vector<uint8_t> slot_used_;
  std::vector<float> logits_;
  HostRoom pinned_logits_;  // on a device in place of these
};

}  // namespace elapid
