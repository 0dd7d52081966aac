#include "elapid/infer/engine.h"

#include "elapid/core/error.h"

#include <algorithm>
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

}  // namespace

Engine::Engine(const Model& model, ThreadPool& threads, const EngineOptions& options)
    : model_(&model),
      threads_(&threads),
      options_(checked(options)),
      states_(model.state_spec(), options_.slots, options_.state) {
  slot_used_.assign(static_cast<size_t>(options_.slots), 0);
  // Even an absent array is a tensor with an address.
  outputs_.reserve(1);
}

void Engine::begin(std::span<const Input> inputs) {
  const int64_t vocab = model_->config().vocab, d_model = model_->config().d_model;
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
    std::copy_n(from.row<float>(piece.first), piece.count * d_model, all.row<float>(offsets_[i]));
  }
  return all;
}

// The hidden states of the rows in outputs_, in the arena.
Tensor Engine::run(std::span<const Input> inputs, const Observer* observer) {
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
  Context ctx = context();
  const Batch batch{.tokens = view(tokens_),
                    .embeddings = given_embeddings(inputs),
                    .offsets = view(offsets_),
                    .slots = view(slots_),
                    .outputs = view(outputs_),
                    .past = view(past_)};
  const Tensor hidden = model_->hidden(ctx, {.batch = batch, .states = &states_, .observer = observer});
  for (size_t i = 0; i < pieces_.size(); ++i) {
    if (slots_[i] != kNoSlot) states_.advance(slots_[i], pieces_[i].count);
  }
  return hidden;
}

Tensor Engine::last_logits(std::span<const Input> inputs) {
  begin(inputs);
  const int64_t vocab = model_->config().vocab;
  logits_.resize(inputs.size() * static_cast<size_t>(vocab));
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
      if (ends_here(piece)) std::copy_n(logits.row<float>(row++), vocab, logits_.data() + piece.input * vocab);
    }
  }
  return {logits_.data(), DType::f32, {static_cast<int64_t>(inputs.size()), vocab}};
}

void Engine::all_logits(std::span<const Input> inputs, const Visitor& visitor, int64_t rows) {
  require(rows >= 1, "engine: rows of logits at a time must be at least 1, got ", rows);
  begin(inputs);
  // Every row of the forward call, piece by piece, to an observer.
  const auto by_piece = [&](const auto& receive) {
    return [&](int64_t layer, const Tensor& all) {
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
      visitor.attentions(pieces_[static_cast<size_t>(sequence)], layer, weights);
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
    const auto total = static_cast<int64_t>(outputs_.size());
    for (int64_t from = 0; from < total; from += rows) {
      const Arena::Scope block(arena_);
      const int64_t to = std::min(total, from + rows);
      Context ctx = context();
      const Tensor logits = model_->logits(ctx, hidden.slice(from, to));
      int64_t start = 0;
      for (const Piece& p : wanted_) {
        const int64_t first = std::max(from, start), last = std::min(to, start + p.count);
        if (first < last) {
          visitor.rows({p.input, p.first + first - start, last - first}, hidden.slice(first, last),
                       logits.slice(first - from, last - from));
        }
        start += p.count;
      }
    }
  }
}

}  // namespace elapid
