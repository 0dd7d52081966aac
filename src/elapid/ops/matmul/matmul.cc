#include "elapid/ops/matmul/matmul.h"

#include <algorithm>
#include <cstring>

namespace elapid {
namespace {

// Moves `rows` in units of one element (f32, f16) or of two neighbouring inputs (bf16), never interpreting them. Unit u
// of row r of a block goes to [u][r]: written in order, read as sixteen streams.
template <class Unit>
void pack(ThreadPool& threads, const Tensor& rows, Unit* packed) {
  const int64_t out = rows.shape[0], row_bytes = rows.shape[1] * size_of(rows.dtype);
  const int64_t unit = sizeof(Unit), whole = row_bytes / unit, rest = row_bytes % unit;
  const int64_t units = packed_depth(rows.shape[1]) * size_of(rows.dtype) / unit;
  parallel_for(threads, packed_blocks(out), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t block = begin; block < end; ++block) {
      Unit* to = packed + block * units * kPackBlock;
      const char* from = static_cast<const char*>(rows.data) + block * kPackBlock * row_bytes;
      const int64_t lanes = std::min(kPackBlock, out - block * kPackBlock);
      if (lanes < kPackBlock || whole < units) std::fill_n(to, units * kPackBlock, Unit{0});
      for (int64_t u = 0; u < whole; ++u) {
        for (int64_t lane = 0; lane < lanes; ++lane) {
          std::memcpy(to + u * kPackBlock + lane, from + lane * row_bytes + u * unit, sizeof(Unit));
        }
      }
      for (int64_t lane = 0; rest > 0 && lane < lanes; ++lane) {  // the first half of a pair
        std::memcpy(to + whole * kPackBlock + lane, from + lane * row_bytes + whole * unit, static_cast<size_t>(rest));
      }
    }
  });
}

}  // namespace

int64_t packed_bytes(Shape shape, DType dtype) {
  return packed_blocks(shape[0]) * kPackBlock * packed_depth(shape[1]) * size_of(dtype);
}

Tensor pack_weight(ThreadPool& threads, const Tensor& rows, void* memory) {
  require(rows.shape.rank == 2 && rows.dense(), "pack_weight: weight must be a dense matrix, got rank ",
          rows.shape.rank);
  switch (rows.dtype) {
    case DType::f32: pack(threads, rows, static_cast<uint32_t*>(memory)); break;
    case DType::bf16: pack(threads, rows, static_cast<uint32_t*>(memory)); break;
    case DType::f16: pack(threads, rows, static_cast<uint16_t*>(memory)); break;
    default: fail(concat("pack_weight: weight must be f32, bf16 or f16, got ", name_of(rows.dtype)));
  }
  return {memory, rows.dtype, rows.shape};
}

Tensor matmul(Context& ctx, const Tensor& x, const Param& weight, const Epilogue& epilogue) {
  const int64_t out = weight.value.shape[0], in = weight.value.shape[1];
  require(weight.packing == Packing::tiles, "matmul: ", weight.name, " must be packed");
  require(in >= 1, "matmul: ", weight.name, " must have at least one input, got ", in);
  require(x.dtype == DType::f32 && x.cols() == in, "matmul: x must be f32 with ", in, " columns for ", weight.name,
          ", got ", name_of(x.dtype), " with ", x.cols());
  const Param& bias = epilogue.bias;
  require(!bias || (bias.value.dtype == DType::f32 && bias.value.size() == out), "matmul: bias must be f32 with ", out,
          " elements, got ", bias.value.size());
  for (const Tensor& t : {epilogue.add, epilogue.out}) {
    require(!t || (t.dtype == DType::f32 && t.rows() == x.rows() && t.cols() == out),
            "matmul: add and out must be f32 [", x.rows(), ", ", out, "], got [", t.rows(), ", ", t.cols(), "]");
  }
  const Tensor y = epilogue.out ? epilogue.out : ctx.arena.alloc({x.rows(), out}, DType::f32);
  launch(ctx, MatmulForward{x, weight.value, bias.value, epilogue.add, y, epilogue.alpha});
  return y;
}

}  // namespace elapid
