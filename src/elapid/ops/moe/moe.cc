#include "elapid/ops/moe/moe.h"

#include "elapid/ops/gather_rows/gather_rows.h"

namespace elapid {
namespace {

void check_indices(const Context& ctx, const char* op, const char* name, const Tensor& indices, int64_t count,
                   int64_t below) {
  require(indices.dtype == DType::i64 && indices.size() == count, op, ": ", name, " must be i64 with ", count,
          " elements, got ", name_of(indices.dtype), " with ", indices.size());
  if (on_cuda(ctx.device)) return;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t index = indices.ptr<int64_t>()[i];
    require(index >= 0 && index < below, op, ": ", name, " must not be negative and be below ", below, ", got ", index);
  }
}

}  // namespace

void check_router(const Router& router, int64_t experts, bool has_correction_bias) {
  const int64_t groups = router.groups, top_groups = router.top_groups;
  require(router.top_k >= 1 && router.top_k <= experts, "route: top_k must be 1 to ", experts, " experts, got ",
          router.top_k);
  if (router.routing != Routing::sigmoid_groups) {
    require(groups == 1 && top_groups == 1 && !router.normalize && router.scale == 1 && !has_correction_bias,
            "route: groups, normalize, scale and correction_bias must be unset for a softmax, got groups ", groups,
            ", top_groups ", top_groups, ", normalize ", router.normalize, ", scale ", router.scale,
            has_correction_bias ? ", a bias" : ", no bias");
    return;
  }
  require(groups >= 1 && experts % groups == 0 && experts / groups >= 2, "route: groups must divide ", experts,
          " experts into groups of two or more, got ", groups);
  require(top_groups >= 1 && top_groups <= groups, "route: top_groups must be 1 to ", groups, " groups, got ",
          top_groups);
  const int64_t within = top_groups * (experts / groups);
  require(router.top_k <= within, "route: top_k must be at most the ", within, " experts of ", top_groups,
          " groups, got ", router.top_k);
}

Routes route(Context& ctx, const Tensor& logits, const Router& router, const Param& correction_bias) {
  const int64_t tokens = logits.rows(), experts = logits.cols(), top_k = router.top_k, groups = router.groups;
  const Tensor& bias = correction_bias.value;
  require(logits.dtype == DType::f32, "route: logits must be f32, got ", name_of(logits.dtype));
  check_router(router, experts, static_cast<bool>(bias));
  require(!bias || (bias.dtype == DType::f32 && bias.size() == experts), "route: correction_bias must be f32 with ",
          experts, " elements, got ", name_of(bias.dtype), " with ", bias.size());
  Routes routes;
  routes.experts = ctx.arena.alloc({tokens, top_k}, DType::i64);
  routes.weights = ctx.arena.alloc({tokens, top_k}, DType::f32);
  routes.offsets = ctx.arena.alloc({experts + 1}, DType::i64);
  routes.tokens = ctx.arena.alloc({tokens * top_k}, DType::i64);
  routes.rows = ctx.arena.alloc({tokens, top_k}, DType::i64);
  const Arena::Scope scope(ctx.arena);
  const bool scores = router.routing == Routing::sigmoid_groups && !on_cuda(ctx.device);
  const Tensor scratch =
      scores ? ctx.arena.alloc({ctx.threads.size(), route_scratch_floats(experts, groups)}, DType::f32) : Tensor();
  launch(ctx, RouteForward{logits, bias, routes.experts, routes.weights, scratch, router});
  GroupRows group{routes.experts, routes.offsets, routes.tokens, routes.rows};
  if (on_cuda(ctx.device)) {
    group.counts = ctx.arena.alloc({(tokens * top_k + kRouteChunk - 1) / kRouteChunk + 1, experts}, DType::i32);
  }
  launch(ctx, group);
  return routes;
}

Tensor expert_rows(Context& ctx, const Tensor& x, const Routes& routes) {
  require(takes_activations(ctx, x.dtype), "expert_rows: x must be f32 (on CUDA also bf16), got ", name_of(x.dtype));
  check_indices(ctx, "expert_rows", "tokens", routes.tokens, routes.experts.size(), x.rows());
  const Tensor y = ctx.arena.alloc({routes.tokens.size(), x.cols()}, x.dtype);
  launch(ctx, GatherRowsForward{x, routes.tokens, y});
  return y;
}

Tensor combine(Context& ctx, const Tensor& x, const Routes& routes, const Epilogue& epilogue) {
  const Tensor& weights = routes.weights;
  const int64_t tokens = weights.rows(), width = x.cols();
  require(takes_activations(ctx, x.dtype) && x.rows() == weights.size(),
          "combine: x must be f32 (on CUDA also bf16) with ", weights.size(), " rows, got ", name_of(x.dtype), " with ",
          x.rows());
  require(weights.dtype == DType::f32, "combine: weights must be f32, got ", name_of(weights.dtype));
  check_indices(ctx, "combine", "rows", routes.rows, weights.size(), x.rows());
  require(!epilogue.bias, "combine: bias must be empty, got ", epilogue.bias.size(), " elements");
  const DType dtype = epilogue.out ? epilogue.out.dtype : ctx.activations;
  for (const Tensor& t : {epilogue.add, epilogue.out}) {
    require(!t || (t.dtype == dtype && takes_activations(ctx, dtype) && t.rows() == tokens && t.cols() == width),
            "combine: add and out must be f32 (on CUDA also bf16) [", tokens, ", ", width, "], got ", name_of(t.dtype),
            " [", t.rows(), ", ", t.cols(), "]");
  }
  const Tensor y = epilogue.out ? epilogue.out : ctx.arena.alloc({tokens, width}, dtype);
  launch(ctx, CombineForward{x, weights, routes.rows, epilogue.add, y, epilogue.alpha});
  return y;
}

}  // namespace elapid
