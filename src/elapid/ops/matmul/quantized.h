#pragma once

// Weights in eight or four bits: groups of kQuantGroup inputs of one output share a float32 scale.
//
//   int8: w = scale · q, q in −127 … 127, scale = largest magnitude / 127
//   int4: w = scale · kNormalFloat4[q], q in 0 … 15; the code of Dettmers et al. 2023 ("QLoRA", table of NF4), whose
//         levels are equally likely for normally distributed weights. The scale is the one of a few below the largest
//         magnitude that leaves the least squared error.
//
// Packed order: blocks of sixteen outputs; in a block, groups; in a group sixteen scales, then the codes of its inputs,
// a 32-bit word for each output after another: four inputs a word in int8, byte by byte (the order of AMX int8 tiles);
// eight in int4, input 2i in bits 4i … 4i + 3 and input 2i + 1 in bits 16 + 4i … (the low and the high half of a word
// are the two inputs of a bf16 pair). Inputs and outputs that do not exist are codes of zero with a scale of zero.

#include "elapid/core/kernel.h"
#include "elapid/core/param.h"
#include "elapid/ops/matmul/matmul.h"

#include <span>
#include <string>

namespace elapid {

inline constexpr int64_t kQuantGroup = 64;

constexpr float kNormalFloat4[16] = {-1.0f,
                                     -0.6961928009986877f,
                                     -0.5250730514526367f,
                                     -0.39491748809814453f,
                                     -0.28444138169288635f,
                                     -0.18477343022823334f,
                                     -0.09105003625154495f,
                                     0.0f,
                                     0.07958029955625534f,
                                     0.16093020141124725f,
                                     0.24611230194568634f,
                                     0.33791524171829224f,
                                     0.44070982933044434f,
                                     0.5626170039176941f,
                                     0.7229568362236023f,
                                     1.0f};

ELAPID_INLINE constexpr bool is_quantized(Packing packing) {
  return packing == Packing::int8 || packing == Packing::int4;
}
ELAPID_INLINE constexpr int64_t quant_groups(int64_t in) { return (in + kQuantGroup - 1) / kQuantGroup; }
// Bytes of one group of a block.
ELAPID_INLINE constexpr int64_t quant_group_bytes(Packing packing) {
  return kPackBlock * (size_of(DType::f32) + (packing == Packing::int8 ? kQuantGroup : kQuantGroup / 2));
}
ELAPID_INLINE constexpr int64_t quantized_bytes(Shape shape, Packing packing) {
  return packed_blocks(shape[0]) * quant_groups(shape[1]) * quant_group_bytes(packing);
}

// Where the code of input k of a group is: which word, and bit in it.
struct QuantPlace {
  int64_t word;
  int bit;
};
ELAPID_INLINE constexpr QuantPlace quant_place(Packing packing, int64_t k) {
  if (packing == Packing::int8) return {k / 4, static_cast<int>(k % 4) * 8};
  return {k / 8, static_cast<int>(k % 8 / 2 * 4 + k % 2 * 16)};
}

// As pack_weight(), rounding the rows to `packing`. An Error that calls them `name` when a weight is not finite.
Tensor pack_quantized(ThreadPool& threads, std::span<const Tensor> parts, Packing packing, void* memory,
                      const std::string& name = "weight");

// Output `out`'s weight for input `in`, as packed.
float quantized_weight(const Param& weight, int64_t out, int64_t in);

// Products with quantized weights. x is rounded to bf16; sums are float32. At AMX level many rows also round the
// weights to bf16; few rows (see few_rows_amx.h) round the inputs of a group to 2⁻¹⁶ of its largest and int4's levels
// to 2⁻¹⁶, and sum up a group exactly.
struct QuantizedMatmulForward {
  Tensor x, weight, bias, add, y;
  float alpha;
  Packing packing;
  Tensor rounded;  // as MatmulForward's
  Tensor panels;   // room for kPanelBlocks blocks of bf16 weights for each thread: [threads, panel_bytes()]
};
ELAPID_KERNEL(QuantizedMatmulForward)
ELAPID_AMX_KERNEL(QuantizedMatmulForward)

inline constexpr int64_t kPanelBlocks = 2;
ELAPID_INLINE constexpr int64_t panel_bytes(int64_t in) {
  return kPanelBlocks * quant_groups(in) * kQuantGroup * kPackBlock * size_of(DType::bf16);
}

}  // namespace elapid
