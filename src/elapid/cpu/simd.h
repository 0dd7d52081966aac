#pragma once

// F32: sixteen floats, at every instruction-set level. The level only decides how many registers hold them (one of
// AVX-512, two of AVX2, four of SSE2), so a kernel is written once, tails and reductions are the same everywhere, and
// AVX2 and AVX-512, which both have fused multiply-add, give the same bits. Only *_cpu.cc files include this header;
// all of it has internal linkage, because every level compiles its own copy.

#include "elapid/core/dtype.h"
#include "elapid/core/inline.h"
#include "elapid/core/kernel.h"

#include <cstdint>
#include <cstring>
#include <immintrin.h>
#include <utility>

namespace elapid {

#if defined(ELAPID_ISA_AMX)
#define ELAPID_ISA_AVX512 1
using Cpu = Amx;
#elif defined(ELAPID_ISA_AVX512)
using Cpu = Avx512;
#elif defined(ELAPID_ISA_AVX2)
using Cpu = Avx2;
#elif defined(ELAPID_ISA_BASELINE)
using Cpu = Baseline;
#else
#error "simd.h is for sources built by elapid_add_kernels()"
#endif

namespace {

inline constexpr int64_t kLanes = 16;

#if defined(ELAPID_ISA_AVX512)

inline constexpr int kParts = 1;
using Part = __m512;
using IntPart = __m512i;
ELAPID_INLINE Part part_load(const float* p) { return _mm512_loadu_ps(p); }
ELAPID_INLINE void part_store(float* p, Part a) { _mm512_storeu_ps(p, a); }
ELAPID_INLINE Part part_broadcast(float x) { return _mm512_set1_ps(x); }
ELAPID_INLINE Part part_fma(Part a, Part b, Part c) { return _mm512_fmadd_ps(a, b, c); }
ELAPID_INLINE Part part_fms(Part a, Part b, Part c) { return _mm512_fmsub_ps(a, b, c); }
ELAPID_INLINE Part part_max(Part a, Part b) { return _mm512_max_ps(a, b); }
ELAPID_INLINE Part part_min(Part a, Part b) { return _mm512_min_ps(a, b); }
ELAPID_INLINE IntPart part_bits(Part a) { return _mm512_castps_si512(a); }
ELAPID_INLINE Part part_floats(IntPart a) { return _mm512_castsi512_ps(a); }
ELAPID_INLINE IntPart part_int(int32_t x) { return _mm512_set1_epi32(x); }
ELAPID_INLINE IntPart part_add_int(IntPart a, IntPart b) { return _mm512_add_epi32(a, b); }
ELAPID_INLINE IntPart part_sub_int(IntPart a, IntPart b) { return _mm512_sub_epi32(a, b); }
ELAPID_INLINE IntPart part_and(IntPart a, IntPart b) { return _mm512_and_si512(a, b); }
ELAPID_INLINE IntPart part_or(IntPart a, IntPart b) { return _mm512_or_si512(a, b); }
template <int N>
ELAPID_INLINE IntPart part_shift_left(IntPart a) {
  return _mm512_slli_epi32(a, N);
}
template <int N>
ELAPID_INLINE IntPart part_shift_right(IntPart a) {  // arithmetic
  return _mm512_srai_epi32(a, N);
}
ELAPID_INLINE Part part_to_float(IntPart a) { return _mm512_cvtepi32_ps(a); }
// a > b ? yes : no
ELAPID_INLINE Part part_if_greater(Part a, Part b, Part yes, Part no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), no, yes);
}
// p · 2ⁿ, rounded once; n is what adding it to `magic` has left in the low bits of t.
ELAPID_INLINE Part part_scale(Part p, Part t, Part magic) { return _mm512_scalef_ps(p, t - magic); }
// p · 2ⁿ, or zero where n < least; n is also the exponent field that the low bits of t hold.
ELAPID_INLINE Part part_scale_or_zero(Part p, Part n, Part /*t*/, Part least) {
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(n, least, _CMP_NLT_UQ), p, n);
}
ELAPID_INLINE IntPart part_load_int(const void* p) { return _mm512_loadu_si512(p); }
ELAPID_INLINE Part part_load_half(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
ELAPID_INLINE Part part_load_bf16(const uint16_t* p) {
  return part_floats(
      part_shift_left<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))));
}
// Four floats from each of row(0) … row(3), one after another.
template <class Row>
ELAPID_INLINE Part part_load_rows(const Row& row) {
  Part r = _mm512_castps128_ps512(_mm_loadu_ps(row(0)));
  r = _mm512_insertf32x4(r, _mm_loadu_ps(row(1)), 1);
  r = _mm512_insertf32x4(r, _mm_loadu_ps(row(2)), 2);
  return _mm512_insertf32x4(r, _mm_loadu_ps(row(3)), 3);
}
// Within each four lanes: a0 b0 a1 b1, a2 b2 a3 b3; a0 a1 b0 b1, a2 a3 b2 b3; a1 a0 a3 a2.
ELAPID_INLINE Part part_zip_low(Part a, Part b) { return _mm512_unpacklo_ps(a, b); }
ELAPID_INLINE Part part_zip_high(Part a, Part b) { return _mm512_unpackhi_ps(a, b); }
ELAPID_INLINE Part part_join_low(Part a, Part b) { return _mm512_shuffle_ps(a, b, 0x44); }
ELAPID_INLINE Part part_join_high(Part a, Part b) { return _mm512_shuffle_ps(a, b, 0xee); }
ELAPID_INLINE Part part_swap_pairs(Part a) { return _mm512_shuffle_ps(a, a, 0xb1); }

#elif defined(ELAPID_ISA_AVX2)

inline constexpr int kParts = 2;
using Part = __m256;
using IntPart = __m256i;
ELAPID_INLINE Part part_load(const float* p) { return _mm256_loadu_ps(p); }
ELAPID_INLINE void part_store(float* p, Part a) { _mm256_storeu_ps(p, a); }
ELAPID_INLINE Part part_broadcast(float x) { return _mm256_set1_ps(x); }
ELAPID_INLINE Part part_fma(Part a, Part b, Part c) { return _mm256_fmadd_ps(a, b, c); }
ELAPID_INLINE Part part_fms(Part a, Part b, Part c) { return _mm256_fmsub_ps(a, b, c); }
ELAPID_INLINE Part part_max(Part a, Part b) { return _mm256_max_ps(a, b); }
ELAPID_INLINE Part part_min(Part a, Part b) { return _mm256_min_ps(a, b); }
ELAPID_INLINE IntPart part_bits(Part a) { return _mm256_castps_si256(a); }
ELAPID_INLINE Part part_floats(IntPart a) { return _mm256_castsi256_ps(a); }
ELAPID_INLINE IntPart part_int(int32_t x) { return _mm256_set1_epi32(x); }
ELAPID_INLINE IntPart part_add_int(IntPart a, IntPart b) { return _mm256_add_epi32(a, b); }
ELAPID_INLINE IntPart part_sub_int(IntPart a, IntPart b) { return _mm256_sub_epi32(a, b); }
ELAPID_INLINE IntPart part_and(IntPart a, IntPart b) { return _mm256_and_si256(a, b); }
ELAPID_INLINE IntPart part_or(IntPart a, IntPart b) { return _mm256_or_si256(a, b); }
template <int N>
ELAPID_INLINE IntPart part_shift_left(IntPart a) {
  return _mm256_slli_epi32(a, N);
}
template <int N>
ELAPID_INLINE IntPart part_shift_right(IntPart a) {
  return _mm256_srai_epi32(a, N);
}
ELAPID_INLINE Part part_to_float(IntPart a) { return _mm256_cvtepi32_ps(a); }
ELAPID_INLINE Part part_if_greater(Part a, Part b, Part yes, Part no) {
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
}
ELAPID_INLINE Part part_zero_if_less(Part value, Part a, Part b) {
  return _mm256_andnot_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ), value);
}
ELAPID_INLINE IntPart part_load_int(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
ELAPID_INLINE Part part_load_half(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
ELAPID_INLINE Part part_load_bf16(const uint16_t* p) {
  return part_floats(part_shift_left<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))));
}
template <class Row>
ELAPID_INLINE Part part_load_rows(const Row& row) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row(0))), _mm_loadu_ps(row(1)), 1);
}
ELAPID_INLINE Part part_zip_low(Part a, Part b) { return _mm256_unpacklo_ps(a, b); }
ELAPID_INLINE Part part_zip_high(Part a, Part b) { return _mm256_unpackhi_ps(a, b); }
ELAPID_INLINE Part part_join_low(Part a, Part b) { return _mm256_shuffle_ps(a, b, 0x44); }
ELAPID_INLINE Part part_join_high(Part a, Part b) { return _mm256_shuffle_ps(a, b, 0xee); }
ELAPID_INLINE Part part_swap_pairs(Part a) { return _mm256_shuffle_ps(a, a, 0xb1); }

#else

inline constexpr int kParts = 4;
using Part = __m128;
using IntPart = __m128i;
ELAPID_INLINE Part part_load(const float* p) { return _mm_loadu_ps(p); }
ELAPID_INLINE void part_store(float* p, Part a) { _mm_storeu_ps(p, a); }
ELAPID_INLINE Part part_broadcast(float x) { return _mm_set1_ps(x); }
ELAPID_INLINE Part part_fma(Part a, Part b, Part c) { return _mm_add_ps(_mm_mul_ps(a, b), c); }  // two roundings
ELAPID_INLINE Part part_fms(Part a, Part b, Part c) { return _mm_sub_ps(_mm_mul_ps(a, b), c); }
ELAPID_INLINE Part part_max(Part a, Part b) { return _mm_max_ps(a, b); }
ELAPID_INLINE Part part_min(Part a, Part b) { return _mm_min_ps(a, b); }
ELAPID_INLINE IntPart part_bits(Part a) { return _mm_castps_si128(a); }
ELAPID_INLINE Part part_floats(IntPart a) { return _mm_castsi128_ps(a); }
ELAPID_INLINE IntPart part_int(int32_t x) { return _mm_set1_epi32(x); }
ELAPID_INLINE IntPart part_add_int(IntPart a, IntPart b) { return _mm_add_epi32(a, b); }
ELAPID_INLINE IntPart part_sub_int(IntPart a, IntPart b) { return _mm_sub_epi32(a, b); }
ELAPID_INLINE IntPart part_and(IntPart a, IntPart b) { return _mm_and_si128(a, b); }
ELAPID_INLINE IntPart part_or(IntPart a, IntPart b) { return _mm_or_si128(a, b); }
template <int N>
ELAPID_INLINE IntPart part_shift_left(IntPart a) {
  return _mm_slli_epi32(a, N);
}
template <int N>
ELAPID_INLINE IntPart part_shift_right(IntPart a) {
  return _mm_srai_epi32(a, N);
}
ELAPID_INLINE Part part_to_float(IntPart a) { return _mm_cvtepi32_ps(a); }
ELAPID_INLINE Part part_if_greater(Part a, Part b, Part yes, Part no) {
  const __m128 mask = _mm_cmpgt_ps(a, b);
  return _mm_or_ps(_mm_and_ps(mask, yes), _mm_andnot_ps(mask, no));
}
ELAPID_INLINE Part part_zero_if_less(Part value, Part a, Part b) { return _mm_andnot_ps(_mm_cmplt_ps(a, b), value); }
ELAPID_INLINE IntPart part_load_int(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
ELAPID_INLINE Part part_load_half(const uint16_t* p) {
  alignas(16) float f[4];
  for (int i = 0; i < 4; ++i) f[i] = to_float(Float16{p[i]});
  return _mm_load_ps(f);
}
ELAPID_INLINE Part part_load_bf16(const uint16_t* p) {
  return part_floats(_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
template <class Row>
ELAPID_INLINE Part part_load_rows(const Row& row) {
  return _mm_loadu_ps(row(0));
}
ELAPID_INLINE Part part_zip_low(Part a, Part b) { return _mm_unpacklo_ps(a, b); }
ELAPID_INLINE Part part_zip_high(Part a, Part b) { return _mm_unpackhi_ps(a, b); }
ELAPID_INLINE Part part_join_low(Part a, Part b) { return _mm_shuffle_ps(a, b, 0x44); }
ELAPID_INLINE Part part_join_high(Part a, Part b) { return _mm_shuffle_ps(a, b, 0xee); }
ELAPID_INLINE Part part_swap_pairs(Part a) { return _mm_shuffle_ps(a, a, 0xb1); }

#endif

#if !defined(ELAPID_ISA_AVX512)
// In two factors: n reaches −150 and 128, beyond what one exponent field holds.
ELAPID_INLINE Part part_scale(Part p, Part t, Part magic) {
  const IntPart e = part_sub_int(part_bits(t), part_bits(magic));
  const IntPart e1 = part_shift_right<1>(e);
  const IntPart e2 = part_sub_int(e, e1);
  const IntPart bias = part_int(127);
  const Part s1 = part_floats(part_shift_left<23>(part_add_int(e1, bias)));
  const Part s2 = part_floats(part_shift_left<23>(part_add_int(e2, bias)));
  return p * s1 * s2;
}
ELAPID_INLINE Part part_scale_or_zero(Part p, Part n, Part t, Part least) {
  return part_zero_if_less(p * part_floats(part_shift_left<23>(part_bits(t))), n, least);
}
#endif

inline constexpr int64_t kPartLanes = kLanes / kParts;

// A number that is part of a type. (std::integral_constant's conversion would leave a weak symbol in a debug build.)
template <int N>
struct Constant {
  static constexpr int value = N;
  ELAPID_INLINE constexpr operator int() const { return N; }  // NOLINT: implicit
};

// Calls f(0) … f(N−1) with constant indices: loops over registers must not survive as loops over memory.
template <class F, int... I>
ELAPID_INLINE void static_for_each(const F& f, std::integer_sequence<int, I...>) {
  (f(Constant<I>{}), ...);
}
template <int N, class F>
ELAPID_INLINE void static_for(const F& f) {
  static_for_each(f, std::make_integer_sequence<int, N>{});
}
#define ELAPID_LAMBDA __attribute__((always_inline))

// `count` times sixteen floats. Long formulas on several of them run step by step for all: a processor looks ahead over
// no more than two or three exponentials that are written one after another, too few to hide the latency of their
// steps.
template <int count>
struct Vectors {
  Part v[count * kParts];
};
using F32 = Vectors<1>;

template <int count = 1, class F>
ELAPID_INLINE Vectors<count> by_part(const F& f) {
  Vectors<count> r;
  static_for<count * kParts>([&](auto i) ELAPID_LAMBDA { r.v[i] = f(i); });
  return r;
}
// What f(0) … f(count − 1) are, side by side.
template <int count, class F>
ELAPID_INLINE Vectors<count> side_by_side(const F& f) {
  Vectors<count> r;
  static_for<count>([&](auto k) ELAPID_LAMBDA {
    const F32 one = f(k);
    static_for<kParts>([&](auto i) ELAPID_LAMBDA { r.v[k * kParts + i] = one.v[i]; });
  });
  return r;
}
template <int k, int count>
ELAPID_INLINE F32 pick(const Vectors<count>& a) {
  return by_part([&](auto i) ELAPID_LAMBDA { return a.v[k * kParts + i]; });
}

template <int count = 1>
ELAPID_INLINE Vectors<count> broadcast(float x) {
  return by_part<count>([&](auto) ELAPID_LAMBDA { return part_broadcast(x); });
}
template <int count = 1>
ELAPID_INLINE Vectors<count> zero() {
  return broadcast<count>(0.0f);
}
ELAPID_INLINE F32 load(const float* p) {
  return by_part([&](auto i) ELAPID_LAMBDA { return part_load(p + i * kPartLanes); });
}
ELAPID_INLINE void store(float* p, const F32& a) {
  static_for<kParts>([&](auto i) ELAPID_LAMBDA { part_store(p + i * kPartLanes, a.v[i]); });
}

// The first n floats (0 ≤ n ≤ 16), the other lanes zero; touches no byte beyond them.
ELAPID_INLINE F32 load(const float* p, int64_t n) {
  if (n >= kLanes) return load(p);
#if defined(ELAPID_ISA_AVX512)
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p)};
#else
  alignas(64) float buffer[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) buffer[i] = p[i];
  return load(buffer);
#endif
}
ELAPID_INLINE void store(float* p, const F32& a, int64_t n) {
  if (n >= kLanes) return store(p, a);
#if defined(ELAPID_ISA_AVX512)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), a.v[0]);
#else
  alignas(64) float buffer[kLanes];
  store(buffer, a);
  for (int64_t i = 0; i < n; ++i) p[i] = buffer[i];
#endif
}

template <int n>
ELAPID_INLINE Vectors<n> operator+(const Vectors<n>& a, const Vectors<n>& b) {
  return by_part<n>([&](auto i) ELAPID_LAMBDA { return a.v[i] + b.v[i]; });
}
template <int n>
ELAPID_INLINE Vectors<n> operator-(const Vectors<n>& a, const Vectors<n>& b) {
  return by_part<n>([&](auto i) ELAPID_LAMBDA { return a.v[i] - b.v[i]; });
}
template <int n>
ELAPID_INLINE Vectors<n> operator*(const Vectors<n>& a, const Vectors<n>& b) {
  return by_part<n>([&](auto i) ELAPID_LAMBDA { return a.v[i] * b.v[i]; });
}
template <int n>
ELAPID_INLINE Vectors<n> operator/(const Vectors<n>& a, const Vectors<n>& b) {
  return by_part<n>([&](auto i) ELAPID_LAMBDA { return a.v[i] / b.v[i]; });
}
// a·b + c, one rounding where the level has FMA.
template <int n>
ELAPID_INLINE Vectors<n> fma(const Vectors<n>& a, const Vectors<n>& b, const Vectors<n>& c) {
  return by_part<n>([&](auto i) ELAPID_LAMBDA { return part_fma(a.v[i], b.v[i], c.v[i]); });
}
// When either operand is NaN these return b: put the value that may be NaN second.
template <int n>
ELAPID_INLINE Vectors<n> max(const Vectors<n>& a, const Vectors<n>& b) {
  return by_part<n>([&](auto i) ELAPID_LAMBDA { return part_max(a.v[i], b.v[i]); });
}
template <int n>
ELAPID_INLINE Vectors<n> min(const Vectors<n>& a, const Vectors<n>& b) {
  return by_part<n>([&](auto i) ELAPID_LAMBDA { return part_min(a.v[i], b.v[i]); });
}
template <int n>
ELAPID_INLINE Vectors<n> if_greater(const Vectors<n>& a, const Vectors<n>& b, const Vectors<n>& yes,
                                    const Vectors<n>& no) {
  return by_part<n>([&](auto i) ELAPID_LAMBDA { return part_if_greater(a.v[i], b.v[i], yes.v[i], no.v[i]); });
}

// Sum of the lanes in one fixed order, the same at every level: lanes l and l+8, then +4, +2, +1.
ELAPID_INLINE float sum(const F32& a) {
  alignas(64) float f[kLanes];
  store(f, a);
#if defined(ELAPID_ISA_BASELINE)
  for (int64_t width = 8; width > 0; width /= 2) {
    for (int64_t i = 0; i < width; ++i) f[i] += f[i + width];
  }
  return f[0];
#else
  const __m256 s8 = _mm256_load_ps(f) + _mm256_load_ps(f + 8);
  const __m128 s4 = _mm256_castps256_ps128(s8) + _mm256_extractf128_ps(s8, 1);
  const __m128 s2 = s4 + _mm_movehl_ps(s4, s4);
  return _mm_cvtss_f32(s2) + _mm_cvtss_f32(_mm_shuffle_ps(s2, s2, 1));
#endif
}
// The largest lane; NaN or any lane when one is NaN.
ELAPID_INLINE float max_lane(const F32& a) {
  alignas(64) float f[kLanes];
  store(f, a);
  __m128 m = _mm_load_ps(f);
  for (int64_t i = 4; i < kLanes; i += 4) m = _mm_max_ps(m, _mm_load_ps(f + i));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}

// Lanes 2i and 2i + 1 exchanged.
ELAPID_INLINE F32 swap_pairs(const F32& a) {
  return by_part([&](auto i) ELAPID_LAMBDA { return part_swap_pairs(a.v[i]); });
}

// Four floats of each of sixteen rows, transposed: lane i of to[j] is row(i)[j].
template <class Row>
ELAPID_INLINE void load_transposed(const Row& row, F32 (&to)[4]) {
  static_for<kParts>([&](auto i) ELAPID_LAMBDA {
    Part rows[4];  // group g of four lanes of rows[j] is of row 4 g + j
    static_for<4>([&](auto j) ELAPID_LAMBDA {
      rows[j] = part_load_rows([&](int64_t g) ELAPID_LAMBDA { return row(i * kPartLanes + 4 * g + j); });
    });
    const Part a = part_zip_low(rows[0], rows[1]), b = part_zip_low(rows[2], rows[3]);
    const Part c = part_zip_high(rows[0], rows[1]), d = part_zip_high(rows[2], rows[3]);
    to[0].v[i] = part_join_low(a, b);
    to[1].v[i] = part_join_high(a, b);
    to[2].v[i] = part_join_low(c, d);
    to[3].v[i] = part_join_high(c, d);
  });
}

// eˣ to about 1.5 ulp, subnormal results included; overflow gives infinity, NaN stays NaN. Range reduction by Cody and
// Waite, polynomial of Cephes expf (S. Moshier, netlib.org/cephes).
template <int n>
ELAPID_INLINE Vectors<n> exp(const Vectors<n>& x_in) {
  using V = Vectors<n>;
  const V x = min(broadcast<n>(89.0f), max(broadcast<n>(-104.0f), x_in));
  const V magic = broadcast<n>(12582912.0f);  // 1.5·2²³: adding it rounds to an integer in the low bits
  const V t = fma(x, broadcast<n>(1.44269504088896341f), magic);
  const V whole = t - magic;
  V r = fma(whole, broadcast<n>(-0.693359375f), x);
  r = fma(whole, broadcast<n>(2.12194440e-4f), r);
  V p = broadcast<n>(1.9875691500e-4f);
  p = fma(p, r, broadcast<n>(1.3981999507e-3f));
  p = fma(p, r, broadcast<n>(8.3334519073e-3f));
  p = fma(p, r, broadcast<n>(4.1665795894e-2f));
  p = fma(p, r, broadcast<n>(1.6666665459e-1f));
  p = fma(p, r, broadcast<n>(5.0000001201e-1f));
  p = fma(p, r * r, r) + broadcast<n>(1.0f);
  return by_part<n>([&](auto i) ELAPID_LAMBDA { return part_scale(p.v[i], t.v[i], magic.v[i]); });
}

// 2^(a·b) for a·b ≤ 0: the decay of a scan's step, of which there are more than of anything else, in half of exp's
// instructions. Within 1.25 ulp of the power of the product (which, where the level has FMA, is not rounded on its
// own); below 2^−126.5 it is zero; NaN stays NaN. The polynomial is a minimax fit of (2ʳ − 1) / r on [−½, ½].
template <int n>
ELAPID_INLINE Vectors<n> exp2_product(const Vectors<n>& a, const Vectors<n>& b) {
  using V = Vectors<n>;
  const V magic = broadcast<n>(12583039.0f);  // as in exp, plus 127: the low bits hold an exponent field
  const V t = fma(a, b, magic);
  const V whole = t - magic;
  const V r = by_part<n>([&](auto i) ELAPID_LAMBDA { return part_fms(a.v[i], b.v[i], whole.v[i]); });
  V p = broadcast<n>(1.5326465655e-4f);
  p = fma(p, r, broadcast<n>(1.3390806271e-3f));
  p = fma(p, r, broadcast<n>(9.6185058355e-3f));
  p = fma(p, r, broadcast<n>(5.5503599346e-2f));
  p = fma(p, r, broadcast<n>(2.4022647738e-1f));
  p = fma(p, r, broadcast<n>(6.9314718246e-1f));
  p = fma(p, r, broadcast<n>(1.0f));
  return by_part<n>(
      [&](auto i) ELAPID_LAMBDA { return part_scale_or_zero(p.v[i], whole.v[i], t.v[i], part_broadcast(-126.0f)); });
}

// ln(1 + r) − r for r in [√½ − 1, √2 − 1], plus `low`. Polynomial of Cephes logf.
template <int n>
ELAPID_INLINE Vectors<n> log_tail(const Vectors<n>& r, const Vectors<n>& low) {
  const Vectors<n> z = r * r;
  Vectors<n> p = broadcast<n>(7.0376836292e-2f);
  p = fma(p, r, broadcast<n>(-1.1514610310e-1f));
  p = fma(p, r, broadcast<n>(1.1676998740e-1f));
  p = fma(p, r, broadcast<n>(-1.2420140846e-1f));
  p = fma(p, r, broadcast<n>(1.4249322787e-1f));
  p = fma(p, r, broadcast<n>(-1.6668057665e-1f));
  p = fma(p, r, broadcast<n>(2.0000714765e-1f));
  p = fma(p, r, broadcast<n>(-2.4999993993e-1f));
  p = fma(p, r, broadcast<n>(3.3333331174e-1f));
  return fma(z, broadcast<n>(-0.5f), fma(p * r, z, low));
}

// ln x for normal x > 0, to about 1 ulp.
template <int n>
ELAPID_INLINE Vectors<n> log(const Vectors<n>& x) {
  using V = Vectors<n>;
  // Exponent and mantissa such that the mantissa lies in [√½, √2).
  V exponent, mantissa;
  static_for<n * kParts>([&](auto i) ELAPID_LAMBDA {
    const IntPart shifted = part_sub_int(part_bits(x.v[i]), part_int(0x3f3504f3));
    exponent.v[i] = part_to_float(part_shift_right<23>(shifted));
    mantissa.v[i] = part_floats(part_add_int(part_and(shifted, part_int(0x007fffff)), part_int(0x3f3504f3)));
  });
  const V r = mantissa - broadcast<n>(1.0f);
  const V y = log_tail(r, exponent * broadcast<n>(-2.12194440e-4f));
  return fma(exponent, broadcast<n>(0.693359375f), r + y);
}

// ln(1 + e) for 0 ≤ e ≤ 1, to about 1 ulp; NaN stays NaN.
template <int n>
ELAPID_INLINE Vectors<n> log1p_of_fraction(const Vectors<n>& e) {
  using V = Vectors<n>;
  const V bound = broadcast<n>(0.41421356f);
  // Beyond √2 − 1, ln 2 + ln((1 + e) / 2).
  const V r = if_greater(e, bound, fma(e, broadcast<n>(0.5f), broadcast<n>(-0.5f)), e);
  const V y = r + log_tail(r, zero<n>());
  return if_greater(e, bound, y + broadcast<n>(0.69314718246f), y);
}

// erf x to about 1 ulp; ±1 beyond 3.92, NaN stays NaN. Below 0.9375 an odd polynomial, above it 1 − exp(−q(|x|)) with q
// a polynomial for −ln erfc. Both are minimax fits of our own, within 0.05 u before rounding.
ELAPID_INLINE F32 erf(const F32& x) {
  const F32 size =
      by_part([&](auto i) ELAPID_LAMBDA { return part_floats(part_and(part_bits(x.v[i]), part_int(0x7fffffff))); });
  const F32 s = x * x;
  F32 p = broadcast(8.2674618170131e-5f);
  p = fma(p, s, broadcast(-8.1180775305256e-4f));
  p = fma(p, s, broadcast(5.1988302730024e-3f));
  p = fma(p, s, broadcast(-2.685849741101265e-2f));
  p = fma(p, s, broadcast(0.1128367930650711f));
  p = fma(p, s, broadcast(-0.37612631916999817f));
  p = fma(p, s, broadcast(0.12837916612625122f));
  const F32 near = fma(p, x, x);

  const F32 t = min(broadcast(4.0f), size);
  F32 q = broadcast(-2.1337509679142e-4f);
  q = fma(q, t, broadcast(3.2099063973874e-3f));
  q = fma(q, t, broadcast(-2.2873690351843834e-2f));
  q = fma(q, t, broadcast(0.10523631423711777f));
  q = fma(q, t, broadcast(0.6357378363609314f));
  q = fma(q, t, broadcast(1.1285085678100586f));
  const F32 far = broadcast(1.0f) - exp(zero() - q * t);
  return by_part([&](auto i) ELAPID_LAMBDA {
    const IntPart sign = part_and(part_bits(x.v[i]), part_int(static_cast<int32_t>(0x80000000u)));
    const Part signed_far = part_floats(part_or(part_bits(far.v[i]), sign));
    return part_if_greater(size.v[i], part_broadcast(0.9375f), signed_far, near.v[i]);
  });
}

// Rounded to bf16, ties to even; NaN and infinity stay.
ELAPID_INLINE F32 round_to_bf16(const F32& x) {
  return by_part([&](auto i) ELAPID_LAMBDA {
    const IntPart bits = part_bits(x.v[i]), odd = part_and(part_shift_right<16>(bits), part_int(1));
    const IntPart carried = part_add_int(bits, part_add_int(odd, part_int(0x7fff)));
    const Part rounded = part_floats(part_and(carried, part_int(static_cast<int32_t>(0xffff0000u))));
    const Part size = part_floats(part_and(bits, part_int(0x7fffffff)));
    return part_if_greater(part_broadcast(__builtin_inff()), size, rounded, x.v[i]);
  });
}

// Sixteen weights for each of two neighbouring inputs k and k+1, from the packed order of ops/matmul (see
// pack_weight()): bf16 comes in pairs (k, k+1), the order of AMX tiles; f32 and f16 come row by row.
ELAPID_INLINE void load_pair(const float* p, F32& even, F32& odd) {
  even = load(p);
  odd = load(p + kLanes);
}
ELAPID_INLINE void load_pair(const BFloat16* p, F32& even, F32& odd) {
  static_for<kParts>([&](auto i) ELAPID_LAMBDA {
    const IntPart both = part_load_int(p + i * 2 * kPartLanes);
    even.v[i] = part_floats(part_shift_left<16>(both));
    odd.v[i] = part_floats(part_and(both, part_int(static_cast<int32_t>(0xffff0000u))));
  });
}
ELAPID_INLINE void load_pair(const Float16* p, F32& even, F32& odd) {
  const auto* bits = reinterpret_cast<const uint16_t*>(p);
  static_for<kParts>([&](auto i) ELAPID_LAMBDA {
    even.v[i] = part_load_half(bits + i * kPartLanes);
    odd.v[i] = part_load_half(bits + kLanes + i * kPartLanes);
  });
}

}  // namespace
}  // namespace elapid
