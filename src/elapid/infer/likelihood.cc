#include "elapid/infer/likelihood.h"

#include "elapid/core/error.h"
#include "elapid/ops/cross_entropy/cross_entropy.h"

#include <algorithm>
#include <numeric>

namespace elapid {
namespace {

// Queries of equal context.
using Group = std::span<const size_t>;

class Run {
 public:
  Run(Engine& engine, std::span<const Query> queries) : engine_(engine), queries_(queries), results_(queries.size()) {}

  std::vector<Likelihood> operator()(const std::function<void(int64_t)>& progress) {
    std::vector<size_t> order(queries_.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return queries_[a].context < queries_[b].context; });
    for (size_t begin = 0; begin < order.size();) {
      const size_t end = batch_end(order, begin);
      batch({order.data() + begin, end - begin});
      begin = end;
      if (progress) progress(static_cast<int64_t>(end));
    }
    return std::move(results_);
  }

 private:
  // As many queries as there are slots, and one slot more for each context that several of them share.
  [[nodiscard]] size_t batch_end(const std::vector<size_t>& order, size_t begin) const {
    const auto free = static_cast<size_t>(engine_.states().available());
    return std::min(order.size(), begin + std::max<size_t>(1, free / 2));
  }

  // How many ids of a shared context run once for all: as far as where the context alone would be cut, too, so that
  // sharing changes no bit. Pieces are cut at multiples of the engine's chunk, scans at multiples of kCut from there;
  // one token is not run as several are, so at least two are left of a piece.
  [[nodiscard]] int64_t shared_ids(const std::vector<TokenId>& context) const {
    constexpr int64_t kCut = 64;
    const int64_t chunk = engine_.options().chunk, last = static_cast<int64_t>(context.size()) - 1;
    const int64_t piece = last / chunk * chunk, within = (last - piece) / kCut * kCut;
    const bool leaves_one = within > 0 && (piece + within == last || within + 1 == chunk);
    return piece + within - (leaves_one ? kCut : 0);
  }

  // Runs what several queries begin with once, and hands each its own copy of the state.
  void batch(Group queries) {
    std::vector<Slot> slots(queries.size()), bases;
    std::vector<Input> inputs;
    for (size_t i = 0; i < queries.size();) {
      const std::vector<TokenId>& context = queries_[queries[i]].context;
      size_t end = i + 1;
      while (end < queries.size() && queries_[queries[end]].context == context) ++end;
      const int64_t length = shared_ids(context);
      if (end - i > 1 && length > 0) {
        bases.push_back(engine_.states().acquire());
        inputs.push_back({{context.data(), static_cast<size_t>(length)}, bases.back().index(), length});
        shared_.push_back({i, end});
      }
      i = end;
    }
    if (!inputs.empty()) engine_.all_logits(inputs, {.rows = [](const Piece&, const Tensor&, const Tensor&) {}});
    for (size_t g = 0; g < shared_.size(); ++g) {
      for (size_t i = shared_[g].first; i < shared_[g].second; ++i) slots[i] = engine_.states().fork(bases[g]);
    }
    bases.clear();
    shared_.clear();
    score(queries, slots);
  }

  void score(Group queries, std::vector<Slot>& slots) {
    std::vector<std::vector<TokenId>> tokens;
    std::vector<Input> inputs;
    for (size_t i = 0; i < queries.size(); ++i) {
      const Query& q = queries_[queries[i]];
      const bool forked = slots[i].index() != kNoSlot;
      if (!forked) slots[i] = engine_.states().acquire();
      // The continuation's last id is only predicted.
      std::vector<TokenId>& ids =
          tokens.emplace_back(q.context.begin() + (forked ? shared_ids(q.context) : 0), q.context.end());
      ids.insert(ids.end(), q.continuation.begin(), q.continuation.end() - 1);
    }
    for (size_t i = 0; i < queries.size(); ++i) {
      const auto wanted = static_cast<int64_t>(queries_[queries[i]].continuation.size());
      inputs.push_back({tokens[i], slots[i].index(), static_cast<int64_t>(tokens[i].size()) - wanted});
    }
    engine_.all_logits(inputs, {.rows = [&](const Piece& piece, const Tensor&, const Tensor& logits) {
                         const size_t q = queries[static_cast<size_t>(piece.input)];
                         add(queries_[q].continuation, piece.first - inputs[static_cast<size_t>(piece.input)].rows_from,
                             logits, results_[q]);
                       }});
  }

  void add(const std::vector<TokenId>& continuation, int64_t from, const Tensor& logits, Likelihood& result) {
    Context ctx = engine_.host_context();
    const Arena::Scope scope(ctx.arena);
    std::vector<int64_t> labels;
    for (int64_t r = 0; r < logits.rows(); ++r) {
      const TokenId id = continuation[static_cast<size_t>(from + r)];
      labels.push_back(id);
      const float* row = logits.row<float>(r);
      result.greedy &= std::max_element(row, row + logits.cols()) - row == id;
    }
    const Tensor nll = cross_entropy(ctx, logits, Tensor(labels.data(), DType::i64, {logits.rows()}));
    for (int64_t r = 0; r < logits.rows(); ++r) result.log_likelihood -= nll.ptr<float>()[r];
  }

  Engine& engine_;
  std::span<const Query> queries_;
  std::vector<Likelihood> results_;
  std::vector<std::pair<size_t, size_t>> shared_;  // ranges of a batch that share a context
};

}  // namespace

std::vector<Likelihood> log_likelihoods(Engine& engine, std::span<const Query> queries,
                                        const std::function<void(int64_t)>& progress) {
  for (const Query& q : queries) {
    require(!q.context.empty() && !q.continuation.empty(),
            "log likelihoods: contexts and continuations must have ids, got ", q.context.size(), " and ",
            q.continuation.size());
  }
  require(engine.states().available() >= 2, "log likelihoods: the engine must have 2 free slots, got ",
          engine.states().available());
  return Run(engine, queries)(progress);
}

}  // namespace elapid
