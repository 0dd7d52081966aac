#include "elapid/infer/engine.h"

#include "elapid/core/error.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

namespace elapid {
namespace {

EngineOptions checked(EngineOptions options) {
  require(options.slots >= 0, "engine: slots must not be negative, got ", options.slots);
  require(options.chunk >= 1, "engine: chunk must be at least 1, got ", options.chunk);
  require(options.batch >= 0, "engine: batch must not be negative, got ", options.batch);
  if (options.batch == 0) options.batch = options.chunk;
  return options;
}

template <class T>
Tensor view(std::vector<T>& values) {
  return {values.data(), DTypeOf<T>::value, {static_cast<int64_t>(values.size())}};
}

// Calls f(array, its bytes' place) for the batch's arrays one after another; returns where they end.
template <class F>
int64_t place_arrays(const Batch& batch, const F& f) {
  constexpr int64_t kAlignment = 64;
  int64_t at = 0;
  for (const Tensor* t : {&batch.tokens, &batch.offsets, &batch.slots, &batch.outputs, &batch.past}) {
    f(*t, at);
    at += (t->bytes() + kAlignment) / kAlignment * kAlignment;
  }
  return at;
}

}  // namespace

Engine::Engine(const Model& model, ThreadPool& threads, const EngineOptions& options)
    : model_(&model),
      threads_(&threads),
      options_(checked(options)),
      device_(model.device()),
      activations_(on_cuda(device_) && model.weights().precision != Precision::f32 ? DType::bf16 : DType::f32),
      stream_(device_),
      arena_(Arena::kDefaultCapacity, device_),
      states_(model.state_spec(), options_.slots, options_.state, device_, stream_.handle()) {
  if (on_cuda(device_)) host_arena_.emplace();
  slot_used_.assign(static_cast<size_t>(options_.slots), 0);
  // Even an absent array is a tensor with an address.
  outputs_.reserve(1);
}

Engine::~Engine() {
  if constexpr (kWithCuda) {
    // Memory goes when nothing uses it any more. An error has been, or will be, reported where somebody can catch it.
    try {
      if (on_cuda(device_)) synchronize(stream_.handle());
    } catch (const Error&) {  // NOLINT: see above
    }
  }
}

void Engine::begin(std::span<const Input> inputs) {
  const int64_t vocab = model_->config().vocab, d_model = model_->config().d_model;
  if constexpr (kWithCuda) {
    if (on_cuda(device_)) use_cuda_device(device_.index);  // whichever thread calls
  }
  std::fill(slot_used_.begin(), slot_used_.end(), uint8_t{0});
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Input& input = inputs[i];
    require(input.length() > 0, "engine: an input must have tokens, got none for input ", i);
    const Tensor& given = input.embeddings;
    require(!given == !inputs[0].embeddings && (!given || input.tokens.empty()),
            "engine: the inputs of a call must all have ids or all have embeddings, got both at input ", i);
    require(!given || (given.dtype == DType::f32 && given.shape.rank == 2 && given.dense()),
            "engine: embeddings must be a dense f32 matrix, got ", name_of(given.dtype), " of rank ", given.shape.rank);
    require(!given || given.cols() == d_model, "engine: embeddings must have d_model = ", d_model, " columns, got ",
            given ? given.cols() : 0);
    for (size_t t = 0; t < input.tokens.size(); ++t) {
      require(input.tokens[t] >= 0 && input.tokens[t] < vocab, "engine: token ids must be 0 to ", vocab - 1, ", got ",
              input.tokens[t], " at position ", t);
    }
    if (input.slot == kNoSlot) {
      require(input.length() <= options_.chunk, "engine: an input without a slot must fit into one chunk of ",
              options_.chunk, " tokens, got ", input.length());
      continue;
    }
    require(input.slot >= 0 && input.slot < options_.slots, "engine: slots must be 0 to ", options_.slots - 1, ", got ",
            input.slot);
    uint8_t& used = slot_used_[static_cast<size_t>(input.slot)];
    require(!used, "engine: a slot must appear once in a call, got slot ", input.slot, " twice");
    used = 1;
  }
  fed_.assign(inputs.size(), 0);
  under_way_ = false;
}

// Takes the pieces of the next forward call; false when everything was fed.
bool Engine::next_pieces(std::span<const Input> inputs) {
  pieces_.clear();
  int64_t total = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    // Cut at multiples of the sequence's own positions: a prompt that continues a state which was saved at such a
    // multiple runs in the pieces, and hence to the bits, of the prompt as a whole.
    const int64_t past = inputs[i].slot == kNoSlot ? 0 : states_.length(inputs[i].slot);
    const int64_t count = std::min(options_.chunk - past % options_.chunk, inputs[i].length() - fed_[i]);
    if (count == 0) continue;
    if (total > 0 && total + count > options_.batch) break;
    pieces_.push_back({static_cast<int64_t>(i), fed_[i], count});
    fed_[i] += count;
    total += count;
  }
  if (pieces_.empty()) return false;
  if (std::exchange(under_way_, true) && options_.between) options_.between();
  return true;
}

// Those of the forward call, one after another in the arena; empty where the inputs have ids.
Tensor Engine::given_embeddings(std::span<const Input> inputs) {
  if (!inputs[0].embeddings) return {};
  const int64_t d_model = model_->config().d_model;
  const Tensor all = arena_.alloc({offsets_.back(), d_model}, DType::f32);
  for (size_t i = 0; i < pieces_.size(); ++i) {
    const Piece& piece = pieces_[i];
    const Tensor& from = inputs[static_cast<size_t>(piece.input)].embeddings;
    copy_between(device_, stream_.handle(), all.row<float>(offsets_[i]), from.row<float>(piece.first),
                 piece.count * d_model * size_of(DType::f32));
  }
  return all;
}

// Writes the batch's arrays to the pinned memory from which the device copies them.
void Engine::fill_uploaded(const Batch& batch) {
  place_arrays(batch, [&](const Tensor& t, int64_t at) {
    if (t.size() > 0) std::memcpy(batch_room_.ptr<uint8_t>() + at, t.data, static_cast<size_t>(t.bytes()));
  });
}

// Copies the batch's arrays to the device: all in one, at the same place in the arena when a step repeats.
void Engine::upload(const Batch& batch) {
  if constexpr (kWithCuda) {
    const int64_t bytes = place_arrays(batch, [](const Tensor&, int64_t) {});
    batch_room_ = room_->alloc({bytes}, DType::u8);
    const Tensor device = arena_.alloc({bytes}, DType::u8);
    Tensor* to[] = {&uploaded_.tokens, &uploaded_.offsets, &uploaded_.slots, &uploaded_.outputs, &uploaded_.past};
    size_t i = 0;
    place_arrays(batch,
                 [&](const Tensor& t, int64_t at) { *to[i++] = Tensor(device.ptr<uint8_t>() + at, t.dtype, t.shape); });
    fill_uploaded(batch);
    copy_async(device.data, batch_room_.data, bytes, stream_.handle());
  }
}

// What a visitor sees of a tensor: on a device, a copy in `room` that is good until the next one.
Tensor Engine::on_host(const Tensor& t, HostRoom& room) {
  if constexpr (kWithCuda) {
    if (on_cuda(device_)) {
      room.reset();
      const Tensor copy = room.alloc(t.shape, t.dtype);
      const int64_t row = t.cols() * size_of(t.dtype);
      copy_rows_async(copy.data, row, t.data, t.row_stride() * size_of(t.dtype), row, t.rows(), stream_.handle());
      synchronize(stream_.handle());
      return copy;
    }
  }
  return t;
}

// The arrays of the forward call, without embeddings.
Batch Engine::gather(std::span<const Input> inputs) {
  tokens_.clear();
  slots_.clear();
  past_.clear();
  offsets_.assign(1, 0);
  for (const Piece& piece : pieces_) {
    const Input& input = inputs[static_cast<size_t>(piece.input)];
    if (!input.embeddings) {
      const auto begin = input.tokens.begin() + piece.first;
      tokens_.insert(tokens_.end(), begin, begin + piece.count);
    }
    offsets_.push_back(offsets_.back() + piece.count);
    slots_.push_back(input.slot);
    past_.push_back(input.slot == kNoSlot ? 0 : states_.length(input.slot));
    if (input.slot != kNoSlot) states_.extend(input.slot, piece.count);
  }
  return {.tokens = view(tokens_),
          .embeddings = {},
          .offsets = view(offsets_),
          .slots = view(slots_),
          .outputs = view(outputs_),
          .past = view(past_)};
}

// Every slot has consumed its piece.
void Engine::advance() {
  for (size_t i = 0; i < pieces_.size(); ++i) {
    if (slots_[i] != kNoSlot) states_.advance(slots_[i], pieces_[i].count);
  }
}

// The hidden states of the rows in outputs_, in the arena.
Tensor Engine::run(std::span<const Input> inputs, const Observer* observer) {
  if constexpr (kWithCuda) {
    if (on_cuda(device_)) {
      synchronize(stream_.handle());  // the tables of the last forward call were copied
      tables_.reset();
    }
  }
  Batch batch = gather(inputs);
  batch.embeddings = given_embeddings(inputs);
  if (on_cuda(device_)) {
    upload(batch);
    batch.uploaded = &uploaded_;
  }
  Context ctx = context();
  const Tensor hidden = model_->hidden(ctx, {.batch = batch, .states = &states_, .observer = observer});
  advance();
  return hidden;
}

// Whether a call is one step of decoding whose kernels are the same every time. Tables of attention follow the lengths
// of sequences; a trace wants kernels one by one.
bool Engine::replayable(std::span<const Input> inputs) const {
  constexpr size_t kMostSteps = 64;  // graphs, which take memory
  if (!on_cuda(device_) || tracing() || model_->state_spec()->bytes_per_token() > 0) return false;
  const auto count = static_cast<int64_t>(inputs.size());
  if (count == 0 || count > options_.batch || (steps_.size() >= kMostSteps && !steps_.contains(count))) return false;
  return std::all_of(inputs.begin(), inputs.end(), [](const Input& input) {
    return !input.embeddings && input.tokens.size() == 1 && input.slot != kNoSlot;
  });
}

// The logits of such a step. The first one of a number of sequences runs as any other call, which loads its kernels and
// maps its memory; the second is captured.
Tensor Engine::replay(std::span<const Input> inputs) {
  Step& step = steps_[static_cast<int64_t>(inputs.size())];
  if (++step.calls == 1) return {};
  next_pieces(inputs);
  outputs_.resize(inputs.size());
  std::iota(outputs_.begin(), outputs_.end(), int64_t{0});
  if constexpr (kWithCuda) {
    void* const stream = stream_.handle();
    Batch batch = gather(inputs);
    if (step.graph) {
      batch_room_ = step.batch_room;
      fill_uploaded(batch);
    } else {
      const Arena::Scope scope(arena_);
      synchronize(stream);
      step.room.reset();
      step.logits = step.room.alloc({batch.sequence_count(), model_->config().vocab}, DType::f32);
      room_ = &step.room;
      begin_capture(stream);
      try {
        upload(batch);
        step.batch_room = batch_room_;
        batch.uploaded = &uploaded_;
        Context ctx = context();
        const Tensor hidden = model_->hidden(ctx, {.batch = batch, .states = &states_, .observer = nullptr});
        const Tensor logits = model_->logits(ctx, hidden);
        copy_async(step.logits.data, logits.data, logits.bytes(), stream);
      } catch (...) {
        room_ = &tables_;
        abort_capture(stream);
        throw;
      }
      room_ = &tables_;
      step.graph = Graph(end_capture(stream));
    }
    launch_graph(step.graph.handle(), stream);
    synchronize(stream);
  }
  advance();
  return step.logits;
}

Tensor Engine::last_logits(std::span<const Input> inputs) {
  begin(inputs);
  if (replayable(inputs)) {
    if (const Tensor logits = replay(inputs)) return logits;
  }
  const int64_t vocab = model_->config().vocab;
  const Shape shape{static_cast<int64_t>(inputs.size()), vocab};
  Tensor result;
  if constexpr (kWithCuda) {
    if (on_cuda(device_)) {
      pinned_logits_.reset();
      result = pinned_logits_.alloc(shape, DType::f32);
    }
  }
  if (!on_cuda(device_)) {
    logits_.resize(static_cast<size_t>(shape.size()));
    result = Tensor(logits_.data(), DType::f32, shape);
  }
  while (next_pieces(inputs)) {
    const Arena::Scope scope(arena_);
    const auto ends_here = [&](const Piece& p) {
      return p.first + p.count == inputs[static_cast<size_t>(p.input)].length();
    };
    outputs_.clear();
    int64_t end = 0;
    for (const Piece& piece : pieces_) {
      end += piece.count;
      if (ends_here(piece)) outputs_.push_back(end - 1);
    }
    const Tensor hidden = run(inputs, nullptr);
    if (outputs_.empty()) continue;
    Context ctx = context();
    const Tensor logits = model_->logits(ctx, hidden);
    int64_t row = 0;
    for (const Piece& piece : pieces_) {
      if (!ends_here(piece)) continue;
      copy_between(device_, stream_.handle(), result.row<float>(piece.input), logits.row<float>(row++),
                   vocab * size_of(DType::f32));
    }
  }
  if constexpr (kWithCuda) {
    if (on_cuda(device_)) synchronize(stream_.handle());
  }
  return result;
}

void Engine::all_logits(std::span<const Input> inputs, const Visitor& visitor, int64_t rows) {
  require(rows >= 1, "engine: rows of logits at a time must be at least 1, got ", rows);
  begin(inputs);
  // Every row of the forward call, piece by piece, to an observer.
  const auto by_piece = [&](const auto& receive) {
    return [&](int64_t layer, const Tensor& computed) {
      const Tensor all = on_host(computed, seen_);
      int64_t begin = 0;
      for (const Piece& p : pieces_) {
        receive(p, layer, all.slice(begin, begin + p.count));
        begin += p.count;
      }
    };
  };
  Observer observer;
  if (visitor.residual) observer.residual = by_piece(visitor.residual);
  if (visitor.router_logits) observer.router_logits = by_piece(visitor.router_logits);
  if (visitor.attentions) {
    observer.attentions = [&](int64_t layer, int64_t sequence, const Tensor& weights) {
      visitor.attentions(pieces_[static_cast<size_t>(sequence)], layer, on_host(weights, seen_));
    };
  }
  while (next_pieces(inputs)) {
    const Arena::Scope scope(arena_);
    outputs_.clear();
    wanted_.clear();  // of each piece, what is left of it from rows_from on
    int64_t begin = 0;
    for (const Piece& p : pieces_) {
      const int64_t from = std::clamp(inputs[static_cast<size_t>(p.input)].rows_from - p.first, int64_t{0}, p.count);
      if (from < p.count) wanted_.push_back({p.input, p.first + from, p.count - from});
      for (int64_t t = from; t < p.count; ++t) outputs_.push_back(begin + t);
      begin += p.count;
    }
    const Tensor hidden = run(inputs, &observer);
    const Tensor seen_rows = on_host(hidden, seen_hidden_);
    const auto total = static_cast<int64_t>(outputs_.size());
    for (int64_t from = 0; from < total; from += rows) {
      const Arena::Scope block(arena_);
      const int64_t to = std::min(total, from + rows);
      Context ctx = context();
      const Tensor logits = on_host(model_->logits(ctx, hidden.slice(from, to)), seen_);
      int64_t start = 0;
      for (const Piece& p : wanted_) {
        const int64_t first = std::max(from, start), last = std::min(to, start + p.count);
        if (first < last) {
          visitor.rows({p.input, p.first + first - start, last - first}, seen_rows.slice(first, last),
                       logits.slice(first - from, last - from));
        }
        start += p.count;
      }
    }
  }
}

}  // namespace elapid
