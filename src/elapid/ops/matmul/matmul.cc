#include "elapid/ops/matmul/matmul.h"

#include "elapid/ops/matmul/quantized.h"

#include <algorithm>
#include <cstring>

namespace elapid {
namespace {

// Moves rows in units of one element (f32, f16) or of two neighbouring inputs (bf16), never interpreting them. Unit u
// of row r of a block goes to [u][r]: written in order, read as sixteen streams.
template <class Unit>
void pack(ThreadPool& threads, const WeightRows& rows, Shape shape, DType dtype, Unit* packed) {
  const int64_t out = shape[0], row_bytes = shape[1] * size_of(dtype);
  const int64_t unit = sizeof(Unit), whole = row_bytes / unit, rest = row_bytes % unit;
  const int64_t units = packed_depth(shape[1]) * size_of(dtype) / unit;
  parallel_for(threads, packed_blocks(out), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t block = begin; block < end; ++block) {
      Unit* to = packed + block * units * kPackBlock;
      const int64_t lanes = std::min(kPackBlock, out - block * kPackBlock);
      const char* from[kPackBlock];
      for (int64_t lane = 0; lane < lanes; ++lane) from[lane] = rows[block * kPackBlock + lane];
      if (lanes < kPackBlock || whole < units) std::fill_n(to, units * kPackBlock, Unit{0});
      for (int64_t u = 0; u < whole; ++u) {
        for (int64_t lane = 0; lane < lanes; ++lane) {
          std::memcpy(to + u * kPackBlock + lane, from[lane] + u * unit, sizeof(Unit));
        }
      }
      for (int64_t lane = 0; rest > 0 && lane < lanes; ++lane) {  // the first half of a pair
        std::memcpy(to + whole * kPackBlock + lane, from[lane] + whole * unit, static_cast<size_t>(rest));
      }
    }
  });
}

// The same for weights that are rounded on the way.
template <class T>
void pack_rounded(ThreadPool& threads, const WeightRows& rows, Shape shape, BFloat16* packed) {
  const int64_t out = shape[0], in = shape[1], depth = packed_depth(in);
  parallel_for(threads, packed_blocks(out), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t block = begin; block < end; ++block) {
      BFloat16* to = packed + block * depth * kPackBlock;
      std::fill_n(to, depth * kPackBlock, BFloat16{0});
      for (int64_t lane = 0; lane < std::min(kPackBlock, out - block * kPackBlock); ++lane) {
        const char* from = rows[block * kPackBlock + lane];
        for (int64_t k = 0; k < in; ++k) {
          T value;
          std::memcpy(&value, from + k * int64_t{sizeof value}, sizeof value);
          to[(k / 2 * kPackBlock + lane) * 2 + k % 2] = to_bf16(to_float(value));
        }
      }
    }
  });
}

}  // namespace

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

int64_t packed_bytes(Shape shape, DType dtype) {
  return packed_blocks(shape[0]) * kPackBlock * packed_depth(shape[1]) * size_of(dtype);
}

Tensor pack_weight(ThreadPool& threads, std::span<const Tensor> parts, DType packed, void* memory) {
  const WeightRows rows(parts, "pack_weight");
  const DType dtype = rows.dtype();
  const Shape shape = rows.shape();
  require(packed == dtype || packed == DType::bf16, "pack_weight: weight must be packed as ", name_of(dtype),
          " or bf16, got ", name_of(packed));
  if (packed != dtype) {
    auto* rounded = static_cast<BFloat16*>(memory);
    dtype == DType::f32 ? pack_rounded<float>(threads, rows, shape, rounded)
                        : pack_rounded<Float16>(threads, rows, shape, rounded);
  } else if (dtype == DType::f16) {
    pack(threads, rows, shape, dtype, static_cast<uint16_t*>(memory));
  } else {
    pack(threads, rows, shape, dtype, static_cast<uint32_t*>(memory));
  }
  return {memory, packed, shape};
}

Tensor room_to_round(Context& ctx, const Tensor& x, const Param& weight, int64_t groups) {
  if (weight.arithmetic == Arithmetic::f32 && !is_quantized(weight.packing)) return {};
  return ctx.arena.alloc({rounded_bytes(x.rows(), x.cols(), groups)}, DType::u8);
}

Tensor matmul(Context& ctx, const Tensor& x, const Param& weight, const Epilogue& epilogue) {
  const int64_t out = weight.value.shape[0], in = weight.value.shape[1];
  const bool quantized = is_quantized(weight.packing);
  require(weight.packing == Packing::tiles || quantized, "matmul: ", weight.name, " must be packed");
  require(weight.arithmetic == Arithmetic::f32 || quantized || weight.value.dtype == DType::bf16,
          "matmul: ", weight.name, " must be bf16 for bf16 arithmetic, got ", name_of(weight.value.dtype));
  require(in >= 1, "matmul: ", weight.name, " must have at least one input, got ", in);
  require(x.dtype == DType::f32 && x.cols() == in, "matmul: x must be f32 with ", in, " columns for ", weight.name,
          ", got ", name_of(x.dtype), " with ", x.cols());
  const Tensor& bias = epilogue.bias;
  require(!bias || (bias.dtype == DType::f32 && bias.size() == out), "matmul: bias must be f32 with ", out,
          " elements, got ", bias.size());
  for (const Tensor& t : {epilogue.add, epilogue.out}) {
    require(!t || (t.dtype == DType::f32 && t.rows() == x.rows() && t.cols() == out),
            "matmul: add and out must be f32 [", x.rows(), ", ", out, "], got [", t.rows(), ", ", t.cols(), "]");
  }
  const Tensor y = epilogue.out ? epilogue.out : ctx.arena.alloc({x.rows(), out}, DType::f32);
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
