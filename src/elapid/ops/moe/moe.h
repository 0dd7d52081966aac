#pragma once

// A mixture of experts but for its matmuls: which experts a token takes and with what weights, its rows put beside the
// other rows of each expert, and the experts' results added up.
//
//   routes = route(logits);  x = expert_rows(h, routes);  y = the experts on x (grouped_matmul);  combine(y, routes)
//
// A token's results are the same bits whatever its neighbours. On CUDA routes stay on the device: the host neither
// waits for them nor checks their indices. x may be bf16 there.

#include "elapid/core/kernel.h"
#include "elapid/core/param.h"
#include "elapid/ops/matmul/matmul.h"

namespace elapid {

// From a token's router logits l [experts] to its experts and their weights w. Of equal ones the lowest index is taken
// first; NaN counts as the largest, as in torch.topk.
enum class Routing : uint8_t {
  softmax_of_top,  // Granite: the top_k largest l; w = softmax over those
  top_of_softmax,  // Jamba: the same experts; w = their part of the softmax over all, not normalized again
  // Nemotron-H, after DeepSeek-V3 (arXiv 2412.19437): s = sigmoid(l); experts are chosen by s + correction_bias among
  // the top_groups groups of neighbours whose two best sum highest; w = s · scale, first divided by (Σ s + 10⁻²⁰) if
  // `normalize`.
  sigmoid_groups,
};

struct Router {
  Routing routing = Routing::softmax_of_top;
  int64_t top_k = 1;
  // Of sigmoid_groups alone.
  int64_t groups = 1, top_groups = 1;
  bool normalize = false;
  float scale = 1;
};

// An Error unless a token with so many logits can be routed so.
void check_router(const Router& router, int64_t experts, bool has_correction_bias);

// Grouped rows: the pairs (token, rank) sorted by expert, and within an expert by token.
struct Routes {
  Tensor experts;  // [T, top_k] i64, best first
  Tensor weights;  // [T, top_k] f32
  Tensor offsets;  // [experts + 1] i64: grouped rows of each expert
  Tensor tokens;   // [T · top_k] i64: token of each grouped row
  Tensor rows;     // [T, top_k] i64: grouped row of each pair
};

// logits [T, experts] f32; correction_bias [experts] f32 or empty, for sigmoid_groups alone.
Routes route(Context& ctx, const Tensor& logits, const Router& router, const Param& correction_bias = {});

// y[r] = x[tokens[r]]: what the experts read. x [T, d]. Returns [T · top_k, d] of x's type.
Tensor expert_rows(Context& ctx, const Tensor& x, const Routes& routes);

// y[t] = alpha · Σ over ranks k of weights[t, k] · x[rows[t, k]] + add[t], added up in order of k. x [T · top_k, d];
// the epilogue's bias must be empty, its `out` may be its `add`. Returns [T, d] of out's type, or ctx.activations.
Tensor combine(Context& ctx, const Tensor& x, const Routes& routes, const Epilogue& epilogue = {});

struct RouteForward {
  Tensor logits, correction_bias, experts, weights;
  Tensor scratch;  // [threads, route_scratch_floats()], sigmoid_groups alone
  Router router;
};
ELAPID_KERNEL(RouteForward)
ELAPID_CUDA_KERNEL(RouteForward)

// Floats of scratch one thread needs: scores, what is chosen by, scores of groups.
ELAPID_INLINE constexpr int64_t route_scratch_floats(int64_t experts, int64_t groups) { return 2 * experts + groups; }

struct GroupRows {
  Tensor experts, offsets, tokens, rows;  // as in Routes
  Tensor counts{};                        // on CUDA scratch [chunks + 1, experts] i32, of kRouteChunk pairs each
};
ELAPID_KERNEL(GroupRows)
ELAPID_CUDA_KERNEL(GroupRows)
inline constexpr int64_t kRouteChunk = 256;

struct CombineForward {
  Tensor x, weights, rows, add, y;
  float alpha;
};
ELAPID_KERNEL(CombineForward)
ELAPID_CUDA_KERNEL(CombineForward)

}  // namespace elapid
