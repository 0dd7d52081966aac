#pragma once

// Products of the few rows of a decode step, which stream their weights from memory: as few instructions a byte as
// there are, and four streams of weights a core, which draw more of the memory's bandwidth than one.
//
// bf16 weights meet pairs of x in VDPBF16PS. Quantized ones stay integers: a group's x becomes 16-bit integers, scaled
// by its largest, in two bytes each that VPDPBUSD, or from some rows on a tile, multiplies by codes; sums of a group
// are exact. Only *_amx.cc files include this header; all of it has internal linkage.

#include "elapid/core/parallel_walk.h"
#include "elapid/cpu/amx.h"
#include "elapid/ops/matmul/matmul_cpu.h"
#include "elapid/ops/matmul/quantized.h"

namespace elapid {
namespace {

// Blocks, each a stream of its own, that a core takes at a time.
constexpr int kStreams = 4;

// Bytes ahead in each stream.
constexpr int64_t kStreamAhead = 4096;

ELAPID_INLINE int32_t four_bytes_at(const void* p) {
  int32_t word;
  __builtin_memcpy(&word, p, sizeof word);
  return word;
}

// f(Constant n, block) covers all blocks with n = kStreams of them at a time, the last few one by one, on all threads;
// begin() is what holds while a thread is at it, such as Tiles.
template <class Begin, class F>
ELAPID_INLINE void walk_blocks(Amx cpu, int64_t blocks, const Begin& begin, const F& f) {
  parallel_walk(cpu.threads, (blocks + kStreams - 1) / kStreams, [&](int64_t i, int) {
    [[maybe_unused]] const auto holds = begin();
    const int64_t first = i * kStreams, left = blocks - first;
    if (left >= kStreams) return f(Constant<kStreams>{}, first);
    for (int64_t b = 0; b < left; ++b) f(Constant<1>{}, first + b);
  });
}

// f(Constant rows), rows = 1 … most.
template <int most, class F>
ELAPID_INLINE void with_rows(int64_t rows, const F& f) {
  static_for<most>([&](auto r) ELAPID_LAMBDA {
    if (rows == r + 1) f(Constant<decltype(r)::value + 1>{});
  });
}

// x in bf16, [row][depth]; zero beyond its columns.
void round_pairs(const Tensor& x, int64_t depth, BFloat16* to) {
  for (int64_t r = 0; r < x.rows(); ++r) {
    for (int64_t c = 0; c < depth; c += 2 * kLanes, to += 2 * kLanes) {
      const auto floats = [&](int64_t at) ELAPID_LAMBDA {
        return load(x.row<float>(r) + at, at < x.cols() ? x.cols() - at : 0).v[0];
      };
      _mm512_storeu_si512(to, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(floats(c + kLanes), floats(c))));
    }
  }
}

template <int rows, int blocks>
ELAPID_INLINE void pairs(const MatmulForward& a, const BFloat16* x, int64_t depth, int64_t block) {
  const char* w = reinterpret_cast<const char*>(a.weight.ptr<BFloat16>() + block * kPackBlock * depth);
  const int64_t stream = kPackBlock * depth * size_of(DType::bf16);
  __m512 sums[rows][blocks];
  static_for<rows>([&](auto r) ELAPID_LAMBDA {
    static_for<blocks>([&](auto b) ELAPID_LAMBDA { sums[r][b] = _mm512_setzero_ps(); });
  });
  for (int64_t k = 0; k < depth; k += 2, w += 64) {
    __m512bh weights[blocks];
    static_for<blocks>([&](auto b) ELAPID_LAMBDA {
      _mm_prefetch(w + b * stream + kStreamAhead, _MM_HINT_T0);
      weights[b] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(w + b * stream));
    });
    static_for<rows>([&](auto r) ELAPID_LAMBDA {
      const auto xk = reinterpret_cast<__m512bh>(_mm512_set1_epi32(four_bytes_at(x + r * depth + k)));
      static_for<blocks>([&](auto b) ELAPID_LAMBDA { sums[r][b] = _mm512_dpbf16_ps(sums[r][b], weights[b], xk); });
    });
  }
  static_for<rows>([&](auto r) ELAPID_LAMBDA {
    static_for<blocks>([&](auto b) ELAPID_LAMBDA { finish_row(a, r, block + b, {sums[r][b]}); });
  });
}

// The same in tiles that were configured for so few rows; x in tile order, [depth / 32][16][32].
template <int blocks>
ELAPID_INLINE void pair_tiles(const MatmulForward& a, const BFloat16* x, int64_t depth, int64_t block) {
  const char* w = reinterpret_cast<const char*>(a.weight.ptr<BFloat16>() + block * kPackBlock * depth);
  const int64_t stream = kPackBlock * depth * size_of(DType::bf16);
  alignas(64) float sums[kAmxRows * blocks * kPackBlock];
  settle_memory();
  clear_sums();
  for (int64_t k = 0; k < depth; k += kAmxDepth, w += 1024) {
    for (int64_t b = 0; b < blocks; ++b) {
      for (int64_t line = 0; line < 1024; line += 64) _mm_prefetch(w + b * stream + kStreamAhead + line, _MM_HINT_T0);
    }
    _tile_loadd(4, x + k * kAmxRows, 64);
    _tile_loadd(6, w, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (blocks == 4) {
      _tile_loadd(7, w + stream, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(6, w + 2 * stream, 64);
      _tile_dpbf16ps(2, 4, 6);
      _tile_loadd(7, w + 3 * stream, 64);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
  store_tiles<1, blocks>(sums, blocks * kPackBlock);
  for (int64_t r = 0; r < a.y.rows(); ++r) {
    for (int64_t b = 0; b < blocks; ++b) finish_row(a, r, block + b, load(sums + (r * blocks + b) * kPackBlock));
  }
}

// The inputs of up to sixteen rows, group by group, in 16-bit integers X = 256 · high + low, x ≈ scale · X.
class IntegerRows {
 public:
  IntegerRows(const Tensor& room, int64_t rows) : data_(static_cast<char*>(room.data)), rows_(rows) {}

  // Of each row.
  [[nodiscard]] ELAPID_INLINE float* scales(int64_t g) const { return reinterpret_cast<float*>(group(g)); }
  // −128 · Σ X: VPDPBUSD takes codes with 128 added to them.
  [[nodiscard]] ELAPID_INLINE int32_t* offsets(int64_t g) const { return reinterpret_cast<int32_t*>(group(g) + 64); }
  // [rows][64] bytes, in the order of codes: see to_integers().
  [[nodiscard]] ELAPID_INLINE int8_t* high(int64_t g) const { return reinterpret_cast<int8_t*>(group(g) + 128); }
  [[nodiscard]] ELAPID_INLINE int8_t* low(int64_t g) const { return high(g) + rows_ * kQuantGroup; }

 private:
  [[nodiscard]] ELAPID_INLINE char* group(int64_t g) const { return data_ + g * (128 + 2 * rows_ * kQuantGroup); }

  char* data_;
  int64_t rows_;
};

// Such that no sum of a group leaves 32 bits, and high and low eight.
constexpr float kLargestInteger = 127 * 256;

// False when some group's numbers have no such form: not finite, or nearly zero.
bool to_integers(const Tensor& x, Packing packing, const IntegerRows& to) {
  constexpr float kSmallest = 0x1p-100f;
  // int4: the eight inputs of a word, those in its bytes' low halves first.
  const __m128i order = packing == Packing::int8 ? _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
                                                 : _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
  for (int64_t r = 0; r < x.rows(); ++r) {
    for (int64_t g = 0; g * kQuantGroup < x.cols(); ++g) {
      F32 values[4];
      F32 largest = zero();
      bool finite = true;
      static_for<4>([&](auto i) ELAPID_LAMBDA {
        const int64_t at = g * kQuantGroup + i * kLanes, n = x.cols() - at;
        values[i] = round_to_bf16(load(x.row<float>(r) + at, n > 0 ? n : 0));
        const __m512 size = _mm512_abs_ps(values[i].v[0]);
        finite &= _mm512_cmp_ps_mask(size, _mm512_set1_ps(__builtin_inff()), _CMP_NLT_UQ) == 0;
        largest.v[0] = _mm512_max_ps(largest.v[0], size);
      });
      const float most = _mm512_reduce_max_ps(largest.v[0]);
      if (!finite || (most > 0 && most < kSmallest)) return false;
      const __m512 factor = _mm512_set1_ps(most > 0 ? kLargestInteger / most : 0.0f);
      __m512i total = _mm512_setzero_si512();
      static_for<4>([&](auto i) ELAPID_LAMBDA {
        const __m512i integers = _mm512_cvtps_epi32(_mm512_mul_ps(values[i].v[0], factor));
        const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(integers, _mm512_set1_epi32(128)), 8);
        const __m512i low = _mm512_sub_epi32(integers, _mm512_slli_epi32(high, 8));
        total = _mm512_add_epi32(total, integers);
        const auto put = [&](int8_t* at, __m512i v) ELAPID_LAMBDA {
          _mm_store_si128(reinterpret_cast<__m128i*>(at + r * kQuantGroup + i * kLanes),
                          _mm_shuffle_epi8(_mm512_cvtepi32_epi8(v), order));
        };
        put(to.high(g), high);
        put(to.low(g), low);
      });
      to.scales(g)[r] = most / kLargestInteger;
      to.offsets(g)[r] = -128 * _mm512_reduce_add_epi32(total);
    }
  }
  return true;
}

// Four bytes of x in all lanes.
ELAPID_INLINE __m512i spread_bytes(const int8_t* p) { return _mm512_set1_epi32(four_bytes_at(p)); }

ELAPID_INLINE __m512i combined(__m512i high, __m512i low) { return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low); }

// Codes as bytes; scale · unit · code is the weight.
struct Int8Codes {
  static constexpr Packing packing = Packing::int8;
  static constexpr float unit = 1;

  // Adds a word of codes times four bytes of each row, from input i on.
  template <int rows>
  ELAPID_INLINE static void multiply(const char* word, const int8_t* x_high, const int8_t* x_low, int64_t i,
                                     __m512i (&high)[rows], __m512i (&low)[rows]) {
    const __m512i biased = _mm512_xor_si512(_mm512_loadu_si512(word), _mm512_set1_epi8(-128));
    static_for<rows>([&](auto r) ELAPID_LAMBDA {
      const int64_t at = r * kQuantGroup + i * 4;
      high[r] = _mm512_dpbusd_epi32(high[r], biased, spread_bytes(x_high + at));
      low[r] = _mm512_dpbusd_epi32(low[r], biased, spread_bytes(x_low + at));
    });
  }

  // The same of a group: tiles 0 and 1 get tile 4 and 5, high and low bytes of x, times its codes.
  ELAPID_INLINE static void multiply_tiles(const char* codes) {
    settle_memory();
    _tile_zero(0);
    _tile_zero(1);
    _tile_loadd(6, codes, 64);
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 5, 6);
  }
};

// Levels as 16-bit integers, kNormalFloat4 · 32512 = 256 · high + low, low from 0 to 255.
struct Int4Levels {
  alignas(16) uint8_t high[16], biased[16], low[16];  // biased: high + 128
};
constexpr Int4Levels int4_levels() {
  Int4Levels l{};
  for (int i = 0; i < 16; ++i) {
    const float exact = kNormalFloat4[i] * kLargestInteger;
    const int level = static_cast<int>(exact + (exact < 0 ? -0.5f : 0.5f)) + 128 * 256;
    l.biased[i] = static_cast<uint8_t>(level / 256);
    l.high[i] = l.biased[i] ^ 128;
    l.low[i] = static_cast<uint8_t>(level % 256);
  }
  return l;
}
constexpr Int4Levels kInt4Levels = int4_levels();

// Of the four products of bytes the one of both low ones is left out: less than the last bit of x.
struct Int4Codes {
  static constexpr Packing packing = Packing::int4;
  static constexpr float unit = 1 / 127.0f;

  ELAPID_INLINE static __m512i look_up(const uint8_t (&table)[16], __m512i codes) {
    const __m128i once = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(once), codes);
  }
  // f(Constant half, codes) for the low halves of bytes, then the high ones.
  template <class F>
  ELAPID_INLINE static void halves(const char* word, const F& f) {
    const __m512i words = _mm512_loadu_si512(word), mask = _mm512_set1_epi8(15);
    f(Constant<0>{}, _mm512_and_si512(words, mask));
    f(Constant<1>{}, _mm512_and_si512(_mm512_srli_epi32(words, 4), mask));
  }
  template <int rows>
  ELAPID_INLINE static void multiply(const char* word, const int8_t* x_high, const int8_t* x_low, int64_t i,
                                     __m512i (&high)[rows], __m512i (&low)[rows]) {
    halves(word, [&](auto half, __m512i codes) ELAPID_LAMBDA {
      const __m512i w_high = look_up(kInt4Levels.biased, codes), w_low = look_up(kInt4Levels.low, codes);
      static_for<rows>([&](auto r) ELAPID_LAMBDA {
        const int64_t at = r * kQuantGroup + i * 8 + half * 4;
        const __m512i of_high = spread_bytes(x_high + at);
        high[r] = _mm512_dpbusd_epi32(high[r], w_high, of_high);
        low[r] = _mm512_dpbusd_epi32(low[r], w_high, spread_bytes(x_low + at));
        low[r] = _mm512_dpbusd_epi32(low[r], w_low, of_high);
      });
    });
  }
  ELAPID_INLINE static void multiply_tiles(const char* codes) {
    alignas(64) char high[16 * 64], low[16 * 64];
    static_for<8>([&](auto i) ELAPID_LAMBDA {
      halves(codes + i * 64, [&](auto half, __m512i c) ELAPID_LAMBDA {
        _mm512_store_si512(high + (2 * i + half) * 64, look_up(kInt4Levels.high, c));
        _mm512_store_si512(low + (2 * i + half) * 64, look_up(kInt4Levels.low, c));
      });
    });
    settle_memory();
    _tile_zero(0);
    _tile_zero(1);
    _tile_loadd(6, high, 64);
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 5, 6);
    _tile_loadd(7, low, 64);
    _tile_dpbsud(1, 4, 7);
  }
};

template <int rows, int blocks, class Codes>
ELAPID_INLINE void integers(const QuantizedMatmulForward& a, const IntegerRows& x, int64_t block) {
  constexpr int64_t kGroupBytes = quant_group_bytes(Codes::packing), kScales = kPackBlock * 4;
  const int64_t groups = quant_groups(a.weight.cols()), stream = groups * kGroupBytes;
  const char* w = static_cast<const char*>(a.weight.data) + block * stream;
  __m512 sums[rows][blocks];
  static_for<rows>([&](auto r) ELAPID_LAMBDA {
    static_for<blocks>([&](auto b) ELAPID_LAMBDA { sums[r][b] = _mm512_setzero_ps(); });
  });
  for (int64_t g = 0; g < groups; ++g, w += kGroupBytes) {
    const int8_t *x_high = x.high(g), *x_low = x.low(g);
    __m512i high[blocks][rows], low[blocks][rows];
    static_for<rows>([&](auto r) ELAPID_LAMBDA {
      static_for<blocks>([&](auto b) ELAPID_LAMBDA {
        high[b][r] = _mm512_setzero_si512();
        low[b][r] = _mm512_set1_epi32(x.offsets(g)[r]);
      });
    });
    for (int64_t at = kScales; at < kGroupBytes; at += 64) {
      static_for<blocks>([&](auto b) ELAPID_LAMBDA {
        _mm_prefetch(w + b * stream + at + kStreamAhead, _MM_HINT_T0);
        Codes::template multiply<rows>(w + b * stream + at, x_high, x_low, (at - kScales) / 64, high[b], low[b]);
      });
    }
    static_for<blocks>([&](auto b) ELAPID_LAMBDA {
      _mm_prefetch(w + b * stream + kStreamAhead, _MM_HINT_T0);
      const __m512 scale = _mm512_loadu_ps(w + b * stream);
      static_for<rows>([&](auto r) ELAPID_LAMBDA {
        const __m512 sum = _mm512_cvtepi32_ps(combined(high[b][r], low[b][r]));
        sums[r][b] =
            _mm512_fmadd_ps(_mm512_mul_ps(sum, scale), _mm512_set1_ps(x.scales(g)[r] * Codes::unit), sums[r][b]);
      });
    });
  }
  static_for<rows>([&](auto r) ELAPID_LAMBDA {
    static_for<blocks>([&](auto b) ELAPID_LAMBDA { finish_row(a, r, block + b, {sums[r][b]}); });
  });
}

// The same in tiles that were configured for so few rows.
template <int blocks, class Codes>
ELAPID_INLINE void integer_tiles(const QuantizedMatmulForward& a, const IntegerRows& x, int64_t block) {
  constexpr int64_t kGroupBytes = quant_group_bytes(Codes::packing);
  const int64_t groups = quant_groups(a.weight.cols()), stream = groups * kGroupBytes, rows = a.y.rows();
  const char* w = static_cast<const char*>(a.weight.data) + block * stream;
  alignas(64) float sums[kAmxRows][blocks][kLanes];
  alignas(64) int32_t high[blocks][kAmxRows][kLanes], low[blocks][kAmxRows][kLanes];
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t b = 0; b < blocks; ++b) store(sums[r][b], zero());
  }
  for (int64_t g = 0; g < groups; ++g, w += kGroupBytes) {
    settle_memory();
    _tile_loadd(4, x.high(g), 64);
    _tile_loadd(5, x.low(g), 64);
    static_for<blocks>([&](auto b) ELAPID_LAMBDA {
      const char* codes = w + b * stream;
      for (int64_t line = 0; line < kGroupBytes; line += 64) _mm_prefetch(codes + kStreamAhead + line, _MM_HINT_T0);
      Codes::multiply_tiles(codes + kPackBlock * 4);
      _tile_stored(0, high[b], 64);
      _tile_stored(1, low[b], 64);
    });
    settle_memory();
    static_for<blocks>([&](auto b) ELAPID_LAMBDA {
      const __m512 scale = _mm512_loadu_ps(w + b * stream);
      for (int64_t r = 0; r < rows; ++r) {
        const __m512i sum = combined(_mm512_load_si512(high[b][r]), _mm512_load_si512(low[b][r]));
        const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale);
        store(sums[r][b],
              {_mm512_fmadd_ps(scaled, _mm512_set1_ps(x.scales(g)[r] * Codes::unit), _mm512_load_ps(sums[r][b]))});
      }
    });
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t b = 0; b < blocks; ++b) finish_row(a, r, block + b, load(sums[r][b]));
  }
}

}  // namespace
}  // namespace elapid
