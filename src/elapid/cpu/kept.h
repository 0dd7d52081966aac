#pragma once

// States between calls, held in float32 or bf16, to and from lanes. As cpu/simd.h, all of it has internal linkage.

#include "elapid/core/tensor.h"
#include "elapid/cpu/simd.h"

namespace elapid {
namespace {

// The high halves of the lanes of a part.
#if defined(ELAPID_ISA_AVX512)
ELAPID_INLINE void part_store_high_halves(uint16_t* p, IntPart a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(a, 16)));
}
#elif defined(ELAPID_ISA_AVX2)
ELAPID_INLINE void part_store_high_halves(uint16_t* p, IntPart a) {
  const IntPart high = _mm256_srli_epi32(a, 16), packed = _mm256_packus_epi32(high, high);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}
#else
ELAPID_INLINE void part_store_high_halves(uint16_t* p, IntPart a) {
  const IntPart high = _mm_srai_epi32(a, 16);  // SSE2 packs signed numbers alone
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi32(high, high));
}
#endif

// Thresholds for rounding, sixteen bits: element e after token t of its sequence gets e · kNextElement + t · kNextToken
// modulo 2¹⁶. The factors are 2¹⁶ over the plastic number and over the golden ratio, rounded to odd ones: multiples of
// either fill the range evenly, in time as among neighbours.
constexpr uint32_t kNextElement = 49471, kNextToken = 40503;

// To one of the two bf16 neighbours: the one away from zero where what would be cut off exceeds the threshold. Over the
// tokens, an element is rounded up as often as keeps its mean, even where the same value comes again and again: rounded
// to the nearest, a state that decays by less than half a step of bf16 would never decay. NaN and infinity stay.
ELAPID_INLINE void store_dithered(BFloat16* p, const F32& x, uint32_t threshold) {
  alignas(64) static constexpr struct Ramp {
    uint32_t lane[kLanes];
    constexpr Ramp() : lane() {
      for (uint32_t i = 0; i < kLanes; ++i) lane[i] = i * kNextElement;
    }
  } kRamp;
  static_for<kParts>([&](auto i) ELAPID_LAMBDA {
    const IntPart bits = part_bits(x.v[i]), ramp = part_load_int(kRamp.lane + i * (kLanes / kParts));
    const IntPart noise = part_and(part_add_int(ramp, part_int(static_cast<int32_t>(threshold))), part_int(0xffff));
    const Part size = part_floats(part_and(bits, part_int(0x7fffffff)));
    const Part rounded =
        part_if_greater(part_broadcast(__builtin_inff()), size, part_floats(part_add_int(bits, noise)), x.v[i]);
    part_store_high_halves(reinterpret_cast<uint16_t*>(p) + i * (kLanes / kParts), part_bits(rounded));
  });
}
ELAPID_INLINE F32 load(const BFloat16* p) {
  return by_part([&](auto i) ELAPID_LAMBDA {
    return part_load_bf16(reinterpret_cast<const uint16_t*>(p) + i * (kLanes / kParts));
  });
}

// How many tokens of its sequence a state has seen after a call; `past` may be empty.
ELAPID_INLINE int64_t tokens_after(const Tensor& past, const Tensor& offsets, int64_t sequence) {
  const int64_t* offset = offsets.ptr<int64_t>() + sequence;
  return (past ? past.ptr<int64_t>()[sequence] : 0) + offset[1] - offset[0];
}

// Where a state begins, or nowhere.
class Kept {
 public:
  Kept() = default;
  // Element `element` of a slot's state, which will have seen `tokens` of its sequence when it is written.
  ELAPID_INLINE Kept(const Tensor& state, int64_t slot, int64_t element, int64_t tokens)
      : bf16_(state.dtype == DType::bf16),
        threshold_(static_cast<uint32_t>(element) * kNextElement + static_cast<uint32_t>(tokens) * kNextToken) {
    data_ = static_cast<char*>(state.data) + (slot * state.strides[0] + element) * size();
  }
  ELAPID_INLINE explicit operator bool() const { return data_ != nullptr; }
  ELAPID_INLINE Kept operator+(int64_t elements) const {
    Kept at = *this;
    if (data_ != nullptr) at.data_ += elements * size();
    at.threshold_ += static_cast<uint32_t>(elements) * kNextElement;
    return at;
  }
  // The float32 state, or null where it is not one.
  ELAPID_INLINE float* floats() const { return bf16_ ? nullptr : reinterpret_cast<float*>(data_); }

  // Elements i … i + n − 1 (at most sixteen of them), zero in the other lanes.
  ELAPID_INLINE F32 get(int64_t i, int64_t n) const {
    if (!bf16_) return load(reinterpret_cast<const float*>(data_) + i, n);
    const BFloat16* p = reinterpret_cast<const BFloat16*>(data_) + i;
    if (n >= kLanes) return load(p);
    alignas(64) BFloat16 buffer[kLanes] = {};
    for (int64_t k = 0; k < n; ++k) buffer[k] = p[k];
    return load(buffer);
  }
  ELAPID_INLINE void set(int64_t i, const F32& v, int64_t n) const {
    if (!bf16_) return store(reinterpret_cast<float*>(data_) + i, v, n);
    BFloat16* p = reinterpret_cast<BFloat16*>(data_) + i;
    const uint32_t threshold = threshold_ + static_cast<uint32_t>(i) * kNextElement;
    if (n >= kLanes) return store_dithered(p, v, threshold);
    alignas(64) BFloat16 buffer[kLanes];
    store_dithered(buffer, v, threshold);
    for (int64_t k = 0; k < n; ++k) p[k] = buffer[k];
  }

 private:
  [[nodiscard]] ELAPID_INLINE int64_t size() const { return bf16_ ? 2 : 4; }

  char* data_ = nullptr;
  bool bf16_ = false;
  uint32_t threshold_ = 0;
};

}  // namespace
}  // namespace elapid
