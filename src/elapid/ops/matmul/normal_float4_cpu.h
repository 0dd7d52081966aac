#pragma once

// kNormalFloat4 in registers; as cpu/simd.h, all of it has internal linkage.

#include "elapid/cpu/simd.h"
#include "elapid/ops/matmul/quantized.h"

namespace elapid {
namespace {

// kNormalFloat4[the lowest four bits of each lane].
ELAPID_INLINE Part part_normal_float4(IntPart code) {
#if defined(ELAPID_ISA_AVX512)
  return _mm512_permutexvar_ps(code, _mm512_loadu_ps(kNormalFloat4));
#elif defined(ELAPID_ISA_AVX2)
  const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(kNormalFloat4), code);
  const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(kNormalFloat4 + 8), code);
  return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(code, 28)));
#else
  alignas(16) int32_t codes[4];
  _mm_store_si128(reinterpret_cast<__m128i*>(codes), code);
  return _mm_setr_ps(kNormalFloat4[codes[0] & 15], kNormalFloat4[codes[1] & 15], kNormalFloat4[codes[2] & 15],
                     kNormalFloat4[codes[3] & 15]);
#endif
}

// Bounds first, first + step, … between the levels' neighbourhoods: halfway from one to the next.
struct EightBounds {
  float at[8];
};
ELAPID_INLINE constexpr EightBounds bounds(int first, int step) {
  EightBounds b{};
  for (int i = 0; i < 8; ++i) {
    const int k = first + i * step < 15 ? first + i * step : 14;
    b.at[i] = (kNormalFloat4[k] + kNormalFloat4[k + 1]) / 2;
  }
  return b;
}

// What a code under bisection has come to says which bound is next.
[[maybe_unused]] constexpr EightBounds kBisection[4] = {bounds(7, 16), bounds(3, 8), bounds(1, 4), bounds(0, 2)};

// The code of the level nearest to x, the lower one halfway between two; 0 for NaN.
ELAPID_INLINE IntPart part_nearest_normal_float4(Part x) {
#if defined(ELAPID_ISA_BASELINE)
  constexpr EightBounds kLow = bounds(0, 1), kHigh = bounds(8, 1);
  IntPart code = part_int(0);
  static_for<15>([&](auto i) ELAPID_LAMBDA {
    constexpr int kBound = decltype(i)::value;
    const float bound = kBound < 8 ? kLow.at[kBound % 8] : kHigh.at[kBound % 8];
    code = part_sub_int(code, _mm_castps_si128(_mm_cmpgt_ps(x, part_broadcast(bound))));
  });
  return code;
#else
  IntPart code = part_int(0);
  static_for<4>([&](auto step) ELAPID_LAMBDA {
    constexpr int kHalf = 8 >> decltype(step)::value;
    const __m256 table = _mm256_loadu_ps(kBisection[step].at);
#if defined(ELAPID_ISA_AVX512)
    const __m512 bound = _mm512_permutexvar_ps(_mm512_srli_epi32(code, 4 - step), _mm512_broadcast_f32x8(table));
    code = _mm512_mask_add_epi32(code, _mm512_cmp_ps_mask(x, bound, _CMP_GT_OQ), code, part_int(kHalf));
#else
    const __m256 bound = _mm256_permutevar8x32_ps(table, _mm256_srli_epi32(code, 4 - step));
    const __m256i above = _mm256_castps_si256(_mm256_cmp_ps(x, bound, _CMP_GT_OQ));
    code = part_add_int(code, part_and(above, part_int(kHalf)));
#endif
  });
  return code;
#endif
}

}  // namespace
}  // namespace elapid
