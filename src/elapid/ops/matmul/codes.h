#pragma once

// Quantized weights as files hold them: codes row by row, with scales beside them, in an order that has nothing to do
// with how a product reads them. Turns packed weights into that form and back without another rounding, and into
// floats.

#include "elapid/core/param.h"
#include "elapid/core/thread_pool.h"

#include <array>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace elapid {

// Some rows, or columns of some rows, of a quantized matrix. Element [r, c] is scale · level, where its code is number
// first + r · pitch + c of `codes`: signed bytes, or halves of bytes with the earlier code in the high half.
struct CodedRows {
  Shape shape;              // [rows, columns] of this part
  int bits = 0;             // 8: the level is the code; 4: one of `levels`
  std::string_view name{};  // of the code: "int8", "nf4" or "fp4"
  DType dtype{};            // to which values are rounded: f32, bf16 or f16
  std::span<const uint8_t> codes{};
  int64_t first = 0, pitch = 0;
  std::array<float, 16> levels{};
  std::vector<float> scales{};
  int64_t group = 0;  // codes that share a scale
  // Groups of a row, of which `column` elements come before this part. 0: groups run on from row to row, and that of
  // code number i is i / group.
  int64_t row_groups = 0, column = 0;
  int64_t stored_bytes = 0;  // in the file, scales included

  [[nodiscard]] int64_t scale_index(int64_t row, int64_t col) const {
    return row_groups > 0 ? row * row_groups + (column + col) / group : (first + row * pitch + col) / group;
  }
  [[nodiscard]] unsigned code(int64_t row, int64_t col) const {
    const int64_t i = first + row * pitch + col;
    if (bits == 8) return codes[static_cast<size_t>(i)];
    return codes[static_cast<size_t>(i / 2)] >> (i % 2 == 0 ? 4 : 0) & 15u;
  }
};

// The packing that holds these weights exactly: of groups and levels that are ours.
std::optional<Packing> exact_packing(const CodedRows& rows);

// Columns [0, shape[1]) of a row, as `dtype`, to which scale · level was rounded.
void decode_row(const CodedRows& rows, int64_t row, void* to);

// As pack_quantized() with weights of these codes and scales. All parts have `packing` for their exact_packing().
Tensor pack_codes(ThreadPool& threads, std::span<const CodedRows* const> parts, Packing packing, void* memory);

// What pack_quantized() made of a matrix → codes [out, code_bytes()] and scales [out, quant_groups(in)].
void unpack_codes(ThreadPool& threads, const Tensor& packed, Packing packing, uint8_t* codes, float* scales);

// Bytes of a row of `columns` codes.
constexpr int64_t code_bytes(Packing packing, int64_t columns) {
  return packing == Packing::int8 ? columns : (columns + 1) / 2;
}

}  // namespace elapid
