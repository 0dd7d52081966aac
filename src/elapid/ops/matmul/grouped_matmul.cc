#include "elapid/ops/matmul/grouped_matmul.h"

#include "elapid/ops/matmul/quantized.h"

namespace elapid {
namespace {

// On CUDA. Operands agree in shape.
Tensor launch_on_rows(Context& ctx, const Tensor& x, std::span<const Param> weights, const Tensor& offsets) {
  constexpr int64_t kAligned = 8;  // elements of 16 bytes
  const Tensor& first = weights.front().value;
  const auto groups = static_cast<int64_t>(weights.size());
  require(weights.front().packing == Packing::rows && (first.dtype == DType::f32 || first.dtype == DType::bf16),
          "grouped_matmul: ", weights.front().name, " must be rows of f32 or bf16 on CUDA, got ", name_of(first.dtype));
  const Tensor y = ctx.arena.alloc({x.rows(), first.shape[0]}, ctx.activations);
  const Arena::Scope scope(ctx.arena);
  const Tensor addresses = host_table(ctx, {groups}, DType::i64);
  for (int64_t g = 0; g < groups; ++g) {
    const Tensor& w = weights[static_cast<size_t>(g)].value;
    require(w.dense(), "grouped_matmul: ", weights[static_cast<size_t>(g)].name, " must be dense");
    addresses.ptr<int64_t>()[g] = reinterpret_cast<int64_t>(w.data);
  }
  GroupedMatmulForward args{x, y, weights.data(), offsets, {}, {}, upload(ctx, addresses)};
  const bool aligned = reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.row_stride() % kAligned == 0;
  if (weights.front().arithmetic == Arithmetic::bf16 && (x.dtype != DType::bf16 || !aligned)) {
    const int64_t stride = (x.cols() + kAligned - 1) / kAligned * kAligned;
    args.rounded = ctx.arena.alloc({x.rows(), stride}, DType::bf16).columns(0, x.cols());
  }
  launch(ctx, args);
  return y;
}

}  // namespace

Tensor grouped_matmul(Context& ctx, const Tensor& x, std::span<const Param> weights, const Tensor& offsets) {
  const auto groups = static_cast<int64_t>(weights.size());
  require(groups >= 1, "grouped_matmul: there must be at least one group, got none");
  const Tensor& first = weights.front().value;
  const int64_t out = first.shape[0], in = first.shape[1];
  require(in >= 1, "grouped_matmul: ", weights.front().name, " must have at least one input, got ", in);
  for (const Param& w : weights) {
    require(on_cuda(ctx.device) || w.packing == Packing::tiles || is_quantized(w.packing), "grouped_matmul: ", w.name,
            " must be packed");
    require(w.value.shape == first.shape && w.value.dtype == first.dtype &&
                w.arithmetic == weights.front().arithmetic && w.packing == weights.front().packing,
            "grouped_matmul: ", w.name, " must be ", name_of(first.dtype), " [", out, ", ", in,
            "] as the first group's, got ", name_of(w.value.dtype), " [", w.value.shape[0], ", ", w.value.shape[1],
            w.value.shape == first.shape && w.value.dtype == first.dtype ? "] in another packing or arithmetic" : "]");
  }
  require(takes_activations(ctx, x.dtype) && x.shape.rank == 2 && x.cols() == in,
          "grouped_matmul: x must be an f32 matrix (on CUDA also bf16) with ", in, " columns, got ", name_of(x.dtype),
          " with ", x.cols());
  require(offsets.dtype == DType::i64 && offsets.size() == groups + 1, "grouped_matmul: offsets must be i64 with ",
          groups + 1, " elements, got ", name_of(offsets.dtype), " with ", offsets.size());
  if (on_cuda(ctx.device)) return launch_on_rows(ctx, x, weights, offsets);
  const int64_t* at = offsets.ptr<int64_t>();
  require(at[0] == 0 && at[groups] == x.rows(), "grouped_matmul: offsets must run from 0 to ", x.rows(), ", got ",
          at[0], " to ", at[groups]);
  for (int64_t g = 0; g < groups; ++g) {
    require(at[g] <= at[g + 1], "grouped_matmul: offsets must not decrease, got ", at[g], " before ", at[g + 1]);
  }
  const Tensor y = ctx.arena.alloc({x.rows(), out}, DType::f32);
  const Arena::Scope scope(ctx.arena);
  if (is_quantized(weights.front().packing)) {
    for (int64_t g = 0; g < groups; ++g) {
      if (at[g] == at[g + 1]) continue;
      matmul(ctx, x.slice(at[g], at[g + 1]), weights[static_cast<size_t>(g)], {.out = y.slice(at[g], at[g + 1])});
    }
    return y;
  }
  const Tensor first_task = ctx.arena.alloc({groups + 1}, DType::i64);
  const Tensor rounded = room_to_round(ctx, x, weights.front(), groups);
  launch(ctx, GroupedMatmulForward{x, y, weights.data(), offsets, first_task, rounded});
  return y;
}

}  // namespace elapid
