#include "elapid/ops/matmul/matmul.h"

#include "elapid/ops/matmul/pack.h"
#include "elapid/ops/matmul/quantized.h"

namespace elapid {

WeightRows::WeightRows(std::span<const Tensor> parts, const char* what) : parts_(parts) {
  require(!parts.empty(), what, ": weight must have rows, got none");
  const DType dtype = parts.front().dtype;
  require(dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16, what,
          ": weight must be f32, bf16 or f16, got ", name_of(dtype));
  shape_ = {0, parts.front().cols()};
  for (const Tensor& part : parts) {
    require(part.shape.rank == 2 && part.shape[1] == shape_[1] && part.dtype == dtype, what,
            ": parts must be matrices of ", shape_[1], " columns in ", name_of(dtype), ", got rank ", part.shape.rank,
            " with ", part.cols(), " in ", name_of(part.dtype));
    shape_.dims[0] += part.shape[0];
  }
}

const char* WeightRows::operator[](int64_t row) const {
  size_t i = 0;
  for (; row >= parts_[i].shape[0]; ++i) row -= parts_[i].shape[0];
  const Tensor& part = parts_[i];
  return static_cast<const char*>(part.data) + row * part.row_stride() * size_of(part.dtype);
}

BlockRows::BlockRows(const WeightRows& rows)
    : zeros_(static_cast<size_t>(rows.shape()[1] * size_of(rows.dtype()))),
      addresses_(static_cast<size_t>(packed_blocks(rows.shape()[0]) * kPackBlock), zeros_.data()) {
  for (int64_t r = 0; r < rows.shape()[0]; ++r) addresses_[static_cast<size_t>(r)] = rows[r];
}

int64_t packed_bytes(Shape shape, DType dtype) {
  return packed_blocks(shape[0]) * kPackBlock * packed_depth(shape[1]) * size_of(dtype);
}

Tensor pack_weight(ThreadPool& threads, std::span<const Tensor> parts, DType packed, void* memory) {
  const WeightRows rows(parts, "pack_weight");
  const DType dtype = rows.dtype();
  const Shape shape = rows.shape();
  require(packed == dtype || packed == DType::bf16, "pack_weight: weight must be packed as ", name_of(dtype),
          " or bf16, got ", name_of(packed));
  const BlockRows blocks(rows);
  const int64_t grain = blocks_per_task(threads, packed_blocks(shape[0]), packed_bytes({kPackBlock, shape[1]}, packed));
  launch_on_cpu(threads, PackWeights{blocks.addresses(), shape[0], shape[1], dtype, packed, memory, grain});
  return {memory, packed, shape};
}

Tensor room_to_round(Context& ctx, const Tensor& x, const Param& weight, int64_t groups) {
  if (weight.arithmetic == Arithmetic::f32 && !is_quantized(weight.packing)) return {};
  return ctx.arena.alloc({rounded_bytes(x.rows(), x.cols(), groups)}, DType::u8);
}

namespace {

// On CUDA. Operands agree in shape.
void launch_on_rows(Context& ctx, const Tensor& x, const Param& weight, const Epilogue& epilogue, const Tensor& y) {
  // The library wants its workspace aligned so. Rows are aligned that begin at multiples of eight elements of bf16.
  constexpr int64_t kWorkspace = int64_t{32} << 20, kWorkspaceAlignment = 256, kAligned = 8;
  const Tensor& w = weight.value;
  require(weight.packing == Packing::rows && (w.dtype == DType::f32 || w.dtype == DType::bf16), "matmul: ", weight.name,
          " must be rows of f32 or bf16 on cuda, got ", name_of(w.dtype));
  MatmulForward args{x, w, epilogue.bias, epilogue.add, y, epilogue.alpha, {}, weight.arithmetic};
  const Arena::Scope scope(ctx.arena);
  if (weight.arithmetic == Arithmetic::bf16) {
    const bool aligned = reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.row_stride() % kAligned == 0;
    if (x.dtype != DType::bf16 || !aligned) {
      const int64_t stride = (x.cols() + kAligned - 1) / kAligned * kAligned;
      args.rounded = ctx.arena.alloc({x.rows(), stride}, DType::bf16).columns(0, x.cols());
    }
    if (x.rows() > kCudaFewRows) {
      const Tensor room = ctx.arena.alloc({kWorkspace + kWorkspaceAlignment}, DType::u8);
      const auto at = static_cast<int64_t>(reinterpret_cast<uintptr_t>(room.data));
      const int64_t skip = (kWorkspaceAlignment - at % kWorkspaceAlignment) % kWorkspaceAlignment;
      args.workspace = room.slice(skip, skip + kWorkspace);
      // The library rounds products before it adds to them in bf16.
      if ((epilogue.bias || epilogue.add) && y.dtype == DType::bf16)
        args.unrounded = ctx.arena.alloc({y.rows(), y.cols()}, DType::f32);
    }
  }
  launch(ctx, args);
}

}  // namespace

Tensor matmul(Context& ctx, const Tensor& x, const Param& weight, const Epilogue& epilogue) {
  const int64_t out = weight.value.shape[0], in = weight.value.shape[1];
  const bool on_device = on_cuda(ctx.device);
  const bool quantized = is_quantized(weight.packing);
  require(on_device || weight.packing == Packing::tiles || quantized, "matmul: ", weight.name, " must be packed");
  require(weight.arithmetic == Arithmetic::f32 || quantized || weight.value.dtype == DType::bf16,
          "matmul: ", weight.name, " must be bf16 for bf16 arithmetic, got ", name_of(weight.value.dtype));
  require(in >= 1, "matmul: ", weight.name, " must have at least one input, got ", in);
  require(takes_activations(ctx, x.dtype) && x.cols() == in, "matmul: x must be f32 (on CUDA also bf16) with ", in,
          " columns for ", weight.name, ", got ", name_of(x.dtype), " with ", x.cols());
  const Tensor& bias = epilogue.bias;
  require(!bias || (bias.dtype == DType::f32 && bias.size() == out), "matmul: bias must be f32 with ", out,
          " elements, got ", bias.size());
  const DType dtype = epilogue.out ? epilogue.out.dtype : ctx.activations;
  for (const Tensor& t : {epilogue.add, epilogue.out}) {
    require(!t || (t.dtype == dtype && takes_activations(ctx, dtype) && t.rows() == x.rows() && t.cols() == out),
            "matmul: add and out must be f32 (on CUDA also bf16) [", x.rows(), ", ", out, "], got ", name_of(t.dtype),
            " [", t.rows(), ", ", t.cols(), "]");
  }
  const Tensor y = epilogue.out ? epilogue.out : ctx.arena.alloc({x.rows(), out}, dtype);
  if (on_device) {
    launch_on_rows(ctx, x, weight, epilogue, y);
    return y;
  }
  const Arena::Scope scope(ctx.arena);
  const Tensor rounded = room_to_round(ctx, x, weight);
  if (quantized) {
    const Tensor panels = ctx.arena.alloc({ctx.threads.size(), panel_bytes(in)}, DType::u8);
    launch(ctx, QuantizedMatmulForward{x, weight.value, bias, epilogue.add, y, epilogue.alpha, weight.packing, rounded,
                                       panels});
  } else {
    launch(ctx, MatmulForward{x, weight.value, bias, epilogue.add, y, epilogue.alpha, rounded});
  }
  return y;
}

}  // namespace elapid
