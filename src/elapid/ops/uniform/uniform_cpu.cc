#include "elapid/cpu/simd.h"
#include "elapid/ops/uniform/uniform.h"

namespace elapid {
namespace {

constexpr int64_t kWords = 4, kAtOnce = kWords * kPartLanes;

// Integers of 32 bits in pairs, the first of each pair in the lower half of a 64-bit lane: the products of the first
// ones, and a shift across the pair.
#if defined(ELAPID_ISA_AVX512)
ELAPID_INLINE IntPart multiply_firsts(IntPart a, IntPart b) { return _mm512_mul_epu32(a, b); }
ELAPID_INLINE IntPart to_first(IntPart a) { return _mm512_srli_epi64(a, 32); }
ELAPID_INLINE IntPart to_second(IntPart a) { return _mm512_slli_epi64(a, 32); }
ELAPID_INLINE IntPart exclusive_or(IntPart a, IntPart b) { return _mm512_xor_si512(a, b); }
ELAPID_INLINE IntPart firsts() { return _mm512_set1_epi64(0xffffffff); }
#elif defined(ELAPID_ISA_AVX2)
ELAPID_INLINE IntPart multiply_firsts(IntPart a, IntPart b) { return _mm256_mul_epu32(a, b); }
ELAPID_INLINE IntPart to_first(IntPart a) { return _mm256_srli_epi64(a, 32); }
ELAPID_INLINE IntPart to_second(IntPart a) { return _mm256_slli_epi64(a, 32); }
ELAPID_INLINE IntPart exclusive_or(IntPart a, IntPart b) { return _mm256_xor_si256(a, b); }
ELAPID_INLINE IntPart firsts() { return _mm256_set1_epi64x(0xffffffff); }
#else
ELAPID_INLINE IntPart multiply_firsts(IntPart a, IntPart b) { return _mm_mul_epu32(a, b); }
ELAPID_INLINE IntPart to_first(IntPart a) { return _mm_srli_epi64(a, 32); }
ELAPID_INLINE IntPart to_second(IntPart a) { return _mm_slli_epi64(a, 32); }
ELAPID_INLINE IntPart exclusive_or(IntPart a, IntPart b) { return _mm_xor_si128(a, b); }
ELAPID_INLINE IntPart firsts() { return _mm_set1_epi64x(0xffffffff); }
#endif

struct Product {
  IntPart high, low;
};
ELAPID_INLINE Product multiply(IntPart a, uint32_t factor) {
  const IntPart b = part_int(static_cast<int32_t>(factor)), mask = firsts();
  const IntPart first = multiply_firsts(a, b), second = multiply_firsts(to_first(a), b);
  return {part_or(to_first(first), part_sub_int(second, part_and(second, mask))),
          part_or(part_and(first, mask), to_second(second))};
}

ELAPID_INLINE IntPart part_uint(uint64_t word) { return part_int(static_cast<int32_t>(static_cast<uint32_t>(word))); }

// Elements kWords · first … of a stream as floats, for as many counters as a Part has lanes; their upper halves are the
// same.
ELAPID_INLINE void draw(const Uniform& a, uint64_t first, float (&to)[kAtOnce]) {
  // Such that zipping the words leaves elements in order.
  alignas(64) int32_t counters[kPartLanes];
  for (int64_t i = 0; i < kPartLanes; ++i) counters[i] = static_cast<int32_t>(i % 4 * (kPartLanes / 4) + i / 4);
  IntPart c0 = part_add_int(part_load_int(counters), part_uint(first)), c1 = part_uint(first >> 32);
  IntPart c2 = part_uint(a.stream), c3 = part_uint(a.stream >> 32);
  uint32_t k0 = static_cast<uint32_t>(a.seed), k1 = static_cast<uint32_t>(a.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const Product p0 = multiply(c0, 0xD2511F53u), p1 = multiply(c2, 0xCD9E8D57u);
    c0 = exclusive_or(exclusive_or(p1.high, c1), part_uint(k0));
    c2 = exclusive_or(exclusive_or(p0.high, c3), part_uint(k1));
    c1 = p1.low;
    c3 = p0.low;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const auto scaled = [&](IntPart word) ELAPID_LAMBDA {
    const Part u = part_to_float(part_and(part_shift_right<8>(word), part_int(0xffffff))) * part_broadcast(0x1p-24f);
    return part_broadcast(a.low) + u * part_broadcast(a.high - a.low);
  };
  const Part w0 = scaled(c0), w1 = scaled(c1), w2 = scaled(c2), w3 = scaled(c3);
  const Part low01 = part_zip_low(w0, w1), low23 = part_zip_low(w2, w3);
  const Part high01 = part_zip_high(w0, w1), high23 = part_zip_high(w2, w3);
  part_store(to, part_join_low(low01, low23));
  part_store(to + kPartLanes, part_join_high(low01, low23));
  part_store(to + 2 * kPartLanes, part_join_low(high01, high23));
  part_store(to + 3 * kPartLanes, part_join_high(high01, high23));
}

ELAPID_INLINE void convert(float x, float* to) { *to = x; }
ELAPID_INLINE void convert(float x, BFloat16* to) {  // to_bf16() for what is no NaN, which makes it a vector's
  const auto bits = __builtin_bit_cast(uint32_t, x);
  to->bits = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
ELAPID_INLINE void convert(float x, Float16* to) { *to = to_f16(x); }

template <class T>
void fill(Cpu cpu, const Uniform& a) {
  const int64_t size = a.y.size();
  T* y = a.y.ptr<T>();
  parallel_for(cpu.threads, (size + kAtOnce - 1) / kAtOnce, 1 << 12, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      alignas(64) float drawn[kAtOnce];
      draw(a, static_cast<uint64_t>(i * kPartLanes), drawn);
      T values[kAtOnce];
      for (int64_t j = 0; j < kAtOnce; ++j) convert(drawn[j], values + j);
      const int64_t at = i * kAtOnce, n = size - at < kAtOnce ? size - at : kAtOnce;
      __builtin_memcpy(y + at, values, static_cast<size_t>(n) * sizeof(T));
    }
  });
}

}  // namespace

void run(Cpu cpu, const Uniform& a) {
  switch (a.y.dtype) {
    case DType::f32: return fill<float>(cpu, a);
    case DType::bf16: return fill<BFloat16>(cpu, a);
    default: return fill<Float16>(cpu, a);
  }
}

}  // namespace elapid
