#pragma once

// y = alpha · (x · Wᵀ + bias) + add.
//
// In f32 arithmetic, over weights of any stored type, every output element is the same sequence of operations whatever
// the number of rows, threads or neighbours: products are added in order of k by fused multiply-add into one
// accumulator per kAccumulate inputs, and those partial sums in order into the result. So a row's result is
// bit-identical alone and in any batch.
//
// In bf16 arithmetic x is rounded to bf16 first (subnormals may count as zero); products are exact and sums float32.
// The order of the sums depends on the number of rows, as AMX tiles take many at once.
//
// On CUDA weights are plain rows in f32 or bf16, x and results f32 or bf16. What is said of f32 arithmetic holds there,
// too, with another order: one accumulator for each of 32 lanes (see matmul_cuda.cu).

#include "elapid/core/buffer.h"
#include "elapid/core/kernel.h"
#include "elapid/core/param.h"

#include <span>

namespace elapid {

struct Epilogue {
  float alpha = 1;
  Tensor bias{};  // [out] f32, or empty
  Tensor add{};   // [rows, out] of the result's type, or empty
  Tensor out{};  // [rows, out] f32, on CUDA also bf16: where to write, or empty: from the arena. May be `add` itself (a
                 // residual updated in place).
};

// x [rows, in] f32, on CUDA also bf16; weight [out, in] packed by pack_weight(), on CUDA rows. Returns [rows, out] of
// out's type, or without one ctx.activations.
Tensor matmul(Context& ctx, const Tensor& x, const Param& weight, const Epilogue& epilogue = {});

// The packed order ("tiles"): blocks of kPackBlock outputs; in a block, `in` rounded up to a multiple of kPackDepth
// (the depth of an AMX bf16 tile) inputs, zero where there is no weight. f32 and f16: [in][16]. bf16: [in/2][16][2],
// pairs of neighbouring inputs, which is the order of AMX tiles and which one shift or mask turns into floats.
inline constexpr int64_t kPackBlock = 16;
inline constexpr int64_t kPackDepth = 32;
inline constexpr int64_t kAccumulate = 256;

ELAPID_INLINE constexpr int64_t packed_depth(int64_t in) { return (in + kPackDepth - 1) / kPackDepth * kPackDepth; }
ELAPID_INLINE constexpr int64_t packed_blocks(int64_t out) { return (out + kPackBlock - 1) / kPackBlock; }
// Bytes that pack_weight() writes.
int64_t packed_bytes(Shape shape, DType dtype);

// Weights as a checkpoint has them: parts [n, in] of one element type, one after another, each of which may be columns
// of a wider matrix, at any alignment.
class WeightRows {
 public:
  // An Error unless the parts are matrices of one width in f32, bf16 or f16; `what` names the caller.
  WeightRows(std::span<const Tensor> parts, const char* what);

  [[nodiscard]] Shape shape() const { return shape_; }
  [[nodiscard]] DType dtype() const { return parts_.front().dtype; }
  // The address of a row, over all parts.
  [[nodiscard]] const char* operator[](int64_t row) const;

 private:
  std::span<const Tensor> parts_;
  Shape shape_;
};

// Rows [out, in] f32, bf16 or f16 as in the checkpoint, at any alignment → a view of `memory` in packed order, which
// must hold packed_bytes() of `dtype`: the rows' own type, or bf16, to which others are rounded. The rows may come in
// parts [n, in] of one element type, one after another, and each part may be columns of a wider matrix.
Tensor pack_weight(ThreadPool& threads, std::span<const Tensor> parts, DType dtype, void* memory);
inline Tensor pack_weight(ThreadPool& threads, const Tensor& rows, void* memory) {
  return pack_weight(threads, std::span(&rows, 1), rows.dtype, memory);
}

struct MatmulForward {
  Tensor x, weight, bias, add, y;  // weight: shape [out, in], data packed
  float alpha;
  Tensor rounded;  // in bf16 arithmetic, room for rounded_bytes() (see room_to_round()); else empty
  // On CUDA alone, where `rounded` is [rows, in] bf16 if x must be rounded, or moved to where rows are aligned.
  Arithmetic arithmetic = Arithmetic::f32;
  Tensor workspace{};  // of the library, for more than kCudaFewRows rows
  Tensor unrounded{};  // [rows, out] f32, likewise where something joins the products before they are rounded to bf16
};
ELAPID_KERNEL(MatmulForward)
ELAPID_CUDA_KERNEL(MatmulForward)
ELAPID_AMX_KERNEL(MatmulForward)

// Rows that CUDA's own kernels multiply in bf16 arithmetic: decoding, which reading the weights bounds.
inline constexpr int64_t kCudaFewRows = 16;

// For x rounded to bf16: as floats, or as bf16 in tiles of sixteen rows, of which each group begins one; columns up to
// a multiple of kPackDepth, or of the groups of quantized weights.
ELAPID_INLINE constexpr int64_t rounded_bytes(int64_t rows, int64_t in, int64_t groups = 1) {
  const int64_t depth = packed_depth(in) + kPackDepth;
  const int64_t floats = rows * depth * size_of(DType::f32);
  const int64_t tiles = (rows / kPackBlock + groups) * kPackBlock * depth * size_of(DType::bf16);
  return floats > tiles ? floats : tiles;
}
// In the arena; empty where x is used as it is.
Tensor room_to_round(Context& ctx, const Tensor& x, const Param& weight, int64_t groups = 1);

}  // namespace elapid
