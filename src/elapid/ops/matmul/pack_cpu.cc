#include "elapid/ops/matmul/pack_cpu.h"

namespace elapid {
namespace {

// The low and the high half of every lane, as two rows of sixteen.
ELAPID_INLINE void store_halves(const F32& pairs, uint16_t* low, uint16_t* high) {
#if defined(ELAPID_ISA_AVX512)
  const __m512i words = part_bits(pairs.v[0]);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(low), _mm512_cvtepi32_epi16(words));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(high), _mm512_cvtepi32_epi16(_mm512_srli_epi32(words, 16)));
#elif defined(ELAPID_ISA_AVX2)
  // Sign extension and signed saturation keep all sixteen bits; a pack works within 128 bits.
  const __m256i a = part_bits(pairs.v[0]), b = part_bits(pairs.v[1]);
  const auto joined = [](__m256i x, __m256i y)
                          ELAPID_LAMBDA { return _mm256_permute4x64_epi64(_mm256_packs_epi32(x, y), 0xd8); };
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(low), joined(part_shift_right<16>(part_shift_left<16>(a)),
                                                              part_shift_right<16>(part_shift_left<16>(b))));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(high), joined(part_shift_right<16>(a), part_shift_right<16>(b)));
#else
  static_for<2>([&](auto i) ELAPID_LAMBDA {
    const __m128i a = part_bits(pairs.v[2 * i]), b = part_bits(pairs.v[2 * i + 1]);
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(low + 8 * i),
        _mm_packs_epi32(part_shift_right<16>(part_shift_left<16>(a)), part_shift_right<16>(part_shift_left<16>(b))));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(high + 8 * i),
                     _mm_packs_epi32(part_shift_right<16>(a), part_shift_right<16>(b)));
  });
#endif
}

// Moves four 32-bit units of each row at a time, never interpreting them: one element (f32) or two neighbouring inputs.
// Unit u of a row goes to [u][row]; where elements of sixteen bits are not kept in pairs (f16), a unit is two rows.
template <bool pairs_apart>
void move_block(const char* const* rows, int64_t row_bytes, int64_t units, char* to) {
  constexpr int64_t kStep = 16, kOut = kPackBlock * 4;  // bytes of a row read, and written for each unit
  const auto put = [&](int64_t unit, const F32& words) ELAPID_LAMBDA {
    char* at = to + unit * kOut;
    if constexpr (pairs_apart) {
      store_halves(words, reinterpret_cast<uint16_t*>(at), reinterpret_cast<uint16_t*>(at + kOut / 2));
    } else {
      store(reinterpret_cast<float*>(at), words);
    }
  };
  const auto step = [&](int64_t unit, const auto& row) ELAPID_LAMBDA {
    F32 words[4];
    load_transposed(row, words);
    static_for<4>([&](auto j) ELAPID_LAMBDA { put(unit + j, words[j]); });
  };
  int64_t at = 0;
  for (; at + kStep <= row_bytes; at += kStep) {
    step(at / 4, [&](int64_t r) ELAPID_LAMBDA { return reinterpret_cast<const float*>(rows[r] + at); });
  }
  if (at == 4 * units) return;
  alignas(64) char rest[kPackBlock][kStep] = {};
  for (int64_t r = 0; r < kPackBlock; ++r) {
    __builtin_memcpy(rest[r], rows[r] + at, static_cast<size_t>(row_bytes - at));
  }
  step(at / 4, [&](int64_t r) ELAPID_LAMBDA { return reinterpret_cast<const float*>(rest[r]); });
  for (int64_t unit = at / 4 + 4; unit < units; ++unit) put(unit, zero());
}

// Two floats rounded to bf16 as to_bf16() does it, `even` in the low half: the order of packed bf16.
ELAPID_INLINE F32 rounded_pair(const F32& even, const F32& odd) {
  const auto rounded = [](Part x) ELAPID_LAMBDA {
    const IntPart bits = part_bits(x), lowest = part_and(part_shift_right<16>(bits), part_int(1));
    const IntPart carried = part_add_int(bits, part_add_int(lowest, part_int(0x7fff)));
    // All ones where x is NaN, which must not become infinity.
    const IntPart size = part_and(bits, part_int(0x7fffffff));
    const IntPart nan = part_shift_right<31>(part_sub_int(part_int(0x7f800000), size));
    return part_or(part_and(nan, part_or(bits, part_int(0x00400000))),
                   part_and(part_sub_int(part_int(-1), nan), carried));
  };
  return by_part([&](auto i) ELAPID_LAMBDA {
    const IntPart low = part_and(part_shift_right<16>(rounded(even.v[i])), part_int(0xffff));
    return part_floats(part_or(low, part_and(rounded(odd.v[i]), part_int(static_cast<int32_t>(0xffff0000u)))));
  });
}

void round_block(const char* const* rows, DType dtype, int64_t in, int64_t depth, float* to) {
  alignas(64) float inputs[kPackDepth][kPackBlock];
  for (int64_t first = 0; first < depth; first += kPackDepth, to += kPackDepth / 2 * kPackBlock) {
    load_block(rows, dtype, first, in, inputs);
    for (int64_t k = 0; k < kPackDepth; k += 2) {
      store(to + k / 2 * kPackBlock, rounded_pair(load(inputs[k]), load(inputs[k + 1])));
    }
  }
}

}  // namespace

void run(Cpu cpu, const PackWeights& a) {
  const int64_t depth = packed_depth(a.in), row_bytes = a.in * size_of(a.dtype), blocks = packed_blocks(a.out);
  const int64_t block_bytes = depth * kPackBlock * size_of(a.packed);
  parallel_for(cpu.threads, blocks, a.grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t block = begin; block < end; ++block) {
      const char* const* rows = a.rows + block * kPackBlock;
      char* to = static_cast<char*>(a.memory) + block * block_bytes;
      if (a.packed != a.dtype) {
        round_block(rows, a.dtype, a.in, depth, reinterpret_cast<float*>(to));
      } else if (a.dtype == DType::f16) {
        move_block<true>(rows, row_bytes, block_bytes / (kPackBlock * 4), to);
      } else {
        move_block<false>(rows, row_bytes, block_bytes / (kPackBlock * 4), to);
      }
    }
  });
}

}  // namespace elapid
