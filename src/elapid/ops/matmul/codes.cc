#include "elapid/ops/matmul/codes.h"

#include "elapid/core/error.h"
#include "elapid/ops/matmul/quantized.h"

#include <algorithm>
#include <cstring>

namespace elapid {
namespace {

constexpr unsigned kZeroInt4 = 7;  // the level 0
static_assert(kNormalFloat4[kZeroInt4] == 0);

// One group of one output in packed memory.
struct PackedGroup {
  PackedGroup(void* memory, Packing packing_, int64_t groups, int64_t out, int64_t group)
      : packing(packing_), lane(out % kPackBlock) {
    char* at = static_cast<char*>(memory) + (out / kPackBlock * groups + group) * quant_group_bytes(packing);
    scale = at + lane * 4;
    words = reinterpret_cast<uint32_t*>(at + kPackBlock * 4);
  }

  [[nodiscard]] uint32_t& word(int64_t k) const { return words[quant_place(packing, k).word * kPackBlock + lane]; }
  void set(int64_t k, unsigned code) const { word(k) |= code << quant_place(packing, k).bit; }
  // All codes of the group, as a file has them.
  void set(const uint8_t* codes) const {
    for (int64_t w = 0; w < quant_place(packing, kQuantGroup).word; ++w) {
      uint32_t four;
      std::memcpy(&four, codes + 4 * w, 4);
      words[w * kPackBlock + lane] = packing == Packing::int8 ? four : joined(four >> 4) | joined(four) << 16;
    }
  }
  [[nodiscard]] unsigned get(int64_t k) const {
    return word(k) >> quant_place(packing, k).bit & (packing == Packing::int8 ? 255u : 15u);
  }

  Packing packing;
  int64_t lane;
  char* scale;
  uint32_t* words;

 private:
  // The low halves of four bytes.
  static uint32_t joined(uint32_t bytes) {
    bytes &= 0x0f0f0f0fu;
    bytes = (bytes | bytes >> 4) & 0x00ff00ffu;
    return (bytes | bytes >> 8) & 0xffffu;
  }
};

template <class T, class Round>
void decode(const CodedRows& rows, int64_t row, T* to, const Round& round) {
  const int64_t columns = rows.shape[1], start = rows.first + row * rows.pitch,
                offset = rows.row_groups > 0 ? rows.column : start;  // of the first group's codes
  for (int64_t c = 0; c < columns;) {
    const int64_t end = std::min(columns, c + rows.group - (offset + c) % rows.group);
    const float scale = rows.scales[static_cast<size_t>(rows.scale_index(row, c))];
    for (; c < end; ++c) {
      const unsigned code = rows.code(row, c);
      to[c] = round(scale * (rows.bits == 8 ? static_cast<float>(static_cast<int8_t>(code)) : rows.levels[code]));
    }
  }
}

}  // namespace

std::optional<Packing> exact_packing(const CodedRows& rows) {
  if (rows.group != kQuantGroup || rows.row_groups == 0 || rows.column % kQuantGroup != 0) return {};
  if (rows.bits == 8) return Packing::int8;
  return std::equal(rows.levels.begin(), rows.levels.end(), kNormalFloat4) ? std::optional(Packing::int4)
                                                                           : std::nullopt;
}

void decode_row(const CodedRows& rows, int64_t row, void* to) {
  switch (rows.dtype) {
    case DType::f32: return decode(rows, row, static_cast<float*>(to), [](float v) { return v; });
    case DType::bf16: return decode(rows, row, static_cast<BFloat16*>(to), [](float v) { return to_bf16(v); });
    default: return decode(rows, row, static_cast<Float16*>(to), [](float v) { return to_f16(v); });
  }
}

Tensor pack_codes(ThreadPool& threads, std::span<const CodedRows* const> parts, Packing packing, void* memory) {
  const int64_t in = parts.front()->shape[1], groups = quant_groups(in);
  int64_t out = 0;
  for (const CodedRows* part : parts) {
    require(part->shape[1] == in && exact_packing(*part) == packing, "pack_codes: parts must be codes of ", in,
            " columns in groups of ", kQuantGroup, ", got ", part->shape[1], " columns in groups of ", part->group);
    out += part->shape[0];
  }
  const unsigned zero = packing == Packing::int8 ? 0 : kZeroInt4;
  parallel_for(threads, packed_blocks(out), 1, [&](int64_t begin, int64_t end, int) {
    std::memset(static_cast<char*>(memory) + begin * groups * quant_group_bytes(packing), 0,
                static_cast<size_t>((end - begin) * groups * quant_group_bytes(packing)));
    for (int64_t o = begin * kPackBlock; o < end * kPackBlock; ++o) {
      if (o >= out) {
        for (int64_t g = 0; g < groups; ++g) {
          for (int64_t k = 0; k < kQuantGroup; ++k) PackedGroup(memory, packing, groups, o, g).set(k, zero);
        }
        continue;
      }
      size_t p = 0;
      int64_t row = o;
      for (; row >= parts[p]->shape[0]; ++p) row -= parts[p]->shape[0];
      const CodedRows& from = *parts[p];
      for (int64_t g = 0; g < groups; ++g) {
        const PackedGroup to(memory, packing, groups, o, g);
        const int64_t first = g * kQuantGroup;
        std::memcpy(to.scale, &from.scales[static_cast<size_t>(from.scale_index(row, first))], 4);
        const int64_t at = (from.first + row * from.pitch + first) * from.bits;  // in bits
        if (first + kQuantGroup <= in && at % 8 == 0) {
          to.set(&from.codes[static_cast<size_t>(at / 8)]);
        } else {
          for (int64_t k = 0; k < kQuantGroup; ++k) to.set(k, first + k < in ? from.code(row, first + k) : zero);
        }
      }
    }
  });
  return {memory, DType::u8, {out, in}};
}

void unpack_codes(ThreadPool& threads, const Tensor& packed, Packing packing, uint8_t* codes, float* scales) {
  const int64_t out = packed.shape[0], in = packed.shape[1], groups = quant_groups(in), pitch = code_bytes(packing, in);
  parallel_for(threads, out, kPackBlock, [&](int64_t begin, int64_t end, int) {
    for (int64_t o = begin; o < end; ++o) {
      uint8_t* row = codes + o * pitch;
      std::fill_n(row, pitch, uint8_t{0});
      for (int64_t g = 0; g < groups; ++g) {
        const PackedGroup from(packed.data, packing, groups, o, g);
        std::memcpy(scales + o * groups + g, from.scale, 4);
        for (int64_t k = g * kQuantGroup; k < std::min(in, (g + 1) * kQuantGroup); ++k) {
          const unsigned code = from.get(k % kQuantGroup);
          packing == Packing::int8 ? row[k] = static_cast<uint8_t>(code)
                                   : row[k / 2] |= static_cast<uint8_t>(code << (k % 2 == 0 ? 4 : 0));
        }
      }
    }
  });
}

}  // namespace elapid
