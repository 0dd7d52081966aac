#include "elapid/cpu/simd.h"
#include "elapid/ops/moe/moe.h"

namespace elapid {
namespace {

// torch.topk's order: NaN is the largest.
ELAPID_INLINE bool better(float a, float b) { return a > b || (a != a && b == b); }

// The k best of n keys, best first; of equals the first.
void choose(const float* keys, int64_t n, int64_t k, float* best, int64_t* indices) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (count == k && !better(keys[i], best[k - 1])) continue;
    int64_t at = count < k ? count++ : k - 1;
    for (; at > 0 && better(keys[i], best[at - 1]); --at) {
      best[at] = best[at - 1];
      indices[at] = indices[at - 1];
    }
    best[at] = keys[i];
    indices[at] = i;
  }
}

// y = exp(x − top). Returns Σ y in 16 partial sums. May be in place.
ELAPID_INLINE float exponentials(const float* x, float* y, int64_t n, float top) {
  F32 total = zero();
  for (int64_t i = 0; i < n; i += kLanes) {
    F32 e = exp(load(x + i, n - i) - broadcast(top));
    if (n - i < kLanes) {
      // Lanes beyond the row must add nothing.
      alignas(64) float lanes[kLanes];
      store(lanes, e);
      e = load(lanes, n - i);
    }
    total = total + e;
    if (y != nullptr) store(y + i, e, n - i);
  }
  return sum(total);
}

// The softmax of all logits grows with the logit: its largest are the largest logits, which unlike it do not become
// equal by rounding.
void route_softmax(const RouteForward& a, int64_t token) {
  const int64_t experts = a.logits.cols(), top_k = a.router.top_k;
  const float* logits = a.logits.row<float>(token);
  float* w = a.weights.row<float>(token);
  choose(logits, experts, top_k, w, a.experts.row<int64_t>(token));
  const float top = w[0];
  const float chosen = exponentials(w, w, top_k, top);
  const float total =
      a.router.routing == Routing::softmax_of_top ? chosen : exponentials(logits, nullptr, experts, top);
  for (int64_t k = 0; k < top_k; ++k) w[k] = w[k] / total;
}

void route_sigmoid(const RouteForward& a, int64_t token, float* scratch) {
  const Router& router = a.router;
  const int64_t experts = a.logits.cols(), groups = router.groups, width = experts / groups;
  const float* logits = a.logits.row<float>(token);
  float *scores = scratch, *keys = scores + experts, *group_keys = keys + experts;
  for (int64_t e = 0; e < experts; e += kLanes) {
    const int64_t n = experts - e;
    const F32 one = broadcast(1.0f), s = one / (one + exp(zero() - load(logits + e, n)));
    store(scores + e, s, n);
    store(keys + e, a.correction_bias ? s + load(a.correction_bias.ptr<float>() + e, n) : s, n);
  }
  for (int64_t g = 0; g < groups; ++g) {
    float best[2];
    int64_t indices[2];
    choose(keys + g * width, width, 2, best, indices);
    group_keys[g] = best[0] + best[1];
  }
  for (int64_t g = 0; g < groups; ++g) {
    int64_t ahead = 0;
    for (int64_t other = 0; other < groups; ++other) {
      const bool equal = !better(group_keys[g], group_keys[other]) && !better(group_keys[other], group_keys[g]);
      ahead += better(group_keys[other], group_keys[g]) || (equal && other < g);
    }
    if (ahead < router.top_groups) continue;
    for (int64_t e = g * width; e < (g + 1) * width; ++e) keys[e] = -__builtin_inff();
  }
  float* w = a.weights.row<float>(token);
  int64_t* chosen = a.experts.row<int64_t>(token);
  choose(keys, experts, router.top_k, w, chosen);
  float total = 0;
  for (int64_t k = 0; k < router.top_k; ++k) {
    w[k] = scores[chosen[k]];
    total += w[k];
  }
  total += 1e-20f;
  for (int64_t k = 0; k < router.top_k; ++k) w[k] = (router.normalize ? w[k] / total : w[k]) * router.scale;
}

}  // namespace

void run(Cpu cpu, const RouteForward& a) {
  parallel_for(cpu.threads, a.logits.rows(), 16, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t token = begin; token < end; ++token) {
      if (a.router.routing == Routing::sigmoid_groups) {
        route_sigmoid(a, token, a.scratch.row<float>(worker));
      } else {
        route_softmax(a, token);
      }
    }
  });
}

// A counting sort, on the caller alone: some nanoseconds a pair.
void run(Cpu, const GroupRows& a) {
  const int64_t top_k = a.experts.cols(), pairs = a.tokens.size(), experts = a.offsets.size() - 1;
  const int64_t* expert = a.experts.ptr<int64_t>();
  int64_t *offsets = a.offsets.ptr<int64_t>(), *tokens = a.tokens.ptr<int64_t>(), *rows = a.rows.ptr<int64_t>();
  for (int64_t e = 0; e <= experts; ++e) offsets[e] = 0;
  for (int64_t p = 0; p < pairs; ++p) ++offsets[expert[p] + 1];
  for (int64_t e = 0; e < experts; ++e) offsets[e + 1] += offsets[e];
  for (int64_t p = 0; p < pairs; ++p) {
    const int64_t row = offsets[expert[p]]++;
    tokens[row] = p / top_k;
    rows[p] = row;
  }
  // Every offset has moved to the end of its expert, which is the next one's beginning.
  for (int64_t e = experts; e > 0; --e) offsets[e] = offsets[e - 1];
  offsets[0] = 0;
}

void run(Cpu cpu, const CombineForward& a) {
  constexpr int64_t kPiece = 512;  // columns
  const int64_t width = a.y.cols(), top_k = a.weights.cols(), pieces = (width + kPiece - 1) / kPiece;
  const int64_t grain = (int64_t{1} << 15) / (kPiece * top_k);  // some µs a task
  parallel_for(cpu.threads, a.y.rows() * pieces, grain, [&](int64_t begin, int64_t end, int) {
    const F32 alpha = broadcast(a.alpha);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = i / pieces, first = i % pieces * kPiece;
      const int64_t last = first + kPiece < width ? first + kPiece : width;
      const float* weights = a.weights.row<float>(t);
      const int64_t* rows = a.rows.row<int64_t>(t);
      for (int64_t c = first; c < last; c += kLanes) {
        F32 total = zero();
        for (int64_t k = 0; k < top_k; ++k) {
          total = fma(broadcast(weights[k]), load(a.x.row<float>(rows[k]) + c, last - c), total);
        }
        F32 y = alpha * total;
        if (a.add) y = y + load(a.add.row<float>(t) + c, last - c);
        store(a.y.row<float>(t) + c, y, last - c);
      }
    }
  });
}

}  // namespace elapid
