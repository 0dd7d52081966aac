#include "elapid/ops/matmul/normal_float4_cpu.h"
#include "elapid/ops/matmul/pack_cpu.h"

// Sixteen outputs side by side: what one weight needs is one lane's arithmetic, in the same order at every level.

namespace elapid {
namespace {

// Half of the lanes of a Part as doubles.
#if defined(ELAPID_ISA_AVX512)
using Doubles = __m512d;
ELAPID_INLINE Doubles low_doubles(Part a) { return _mm512_cvtps_pd(_mm512_castps512_ps256(a)); }
ELAPID_INLINE Doubles high_doubles(Part a) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1)); }
#elif defined(ELAPID_ISA_AVX2)
using Doubles = __m256d;
ELAPID_INLINE Doubles low_doubles(Part a) { return _mm256_cvtps_pd(_mm256_castps256_ps128(a)); }
ELAPID_INLINE Doubles high_doubles(Part a) { return _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)); }
#else
using Doubles = __m128d;
ELAPID_INLINE Doubles low_doubles(Part a) { return _mm_cvtps_pd(a); }
ELAPID_INLINE Doubles high_doubles(Part a) { return _mm_cvtps_pd(_mm_movehl_ps(a, a)); }
#endif

// One group of a block: weights[k][output].
using Group = float[kQuantGroup][kPackBlock];

ELAPID_INLINE Part part_size(Part x) { return part_floats(part_and(part_bits(x), part_int(0x7fffffff))); }

// The largest magnitude of each output; clears *finite when a weight is not.
ELAPID_INLINE F32 largest_of(const Group& weights, bool* finite) {
  F32 largest = zero();
  IntPart beyond[kParts];  // negative where a magnitude was beyond the largest finite one
  static_for<kParts>([&](auto i) ELAPID_LAMBDA { beyond[i] = part_int(0); });
  for (int64_t k = 0; k < kQuantGroup; ++k) {
    static_for<kParts>([&](auto i) ELAPID_LAMBDA {
      const Part size = part_size(part_load(&weights[k][i * kPartLanes]));
      largest.v[i] = part_max(size, largest.v[i]);
      beyond[i] = part_or(beyond[i], part_sub_int(part_int(0x7f7fffff), part_bits(size)));
    });
  }
  alignas(64) float signs[kLanes];
  static_for<kParts>([&](auto i) ELAPID_LAMBDA { part_store(signs + i * kPartLanes, part_floats(beyond[i])); });
  for (const float sign : signs) {
    if (__builtin_signbit(sign)) __atomic_store_n(finite, false, __ATOMIC_RELAXED);
  }
  return largest;
}

void quantize_int8(const Group& weights, bool* finite, float* scales, int32_t* words) {
  const F32 scale = largest_of(weights, finite) / broadcast(127);
  store(scales, scale);
  for (int64_t k = 0; k < kQuantGroup; k += 4, words += kPackBlock) {
    static_for<kParts>([&](auto i) ELAPID_LAMBDA {
      IntPart word = part_int(0);
      static_for<4>([&](auto j) ELAPID_LAMBDA {
        // Clamped, then rounded to an integer in the low bits of a float beside 1.5·2²³.
        const Part magic = part_broadcast(12582912.0f), most = part_broadcast(127);
        const Part q = part_load(&weights[k + j][i * kPartLanes]) / scale.v[i];
        const Part clamped = part_max(part_broadcast(-127), part_min(most, q));
        const Part any = part_if_greater(scale.v[i], part_broadcast(0), clamped, part_broadcast(0));
        const IntPart code = part_and(part_bits(any + magic), part_int(255));
        word = part_or(word, part_shift_left<8 * decltype(j)::value>(code));
      });
      part_store(reinterpret_cast<float*>(words + i * kPartLanes), part_floats(word));
    });
  }
}

// Of a few scales below the largest magnitude the one with the least squared error, which is summed in double: squares
// of finite floats stay finite. Outliers that lose a little leave finer steps to all the others.
void quantize_int4(const Group& weights, bool* finite, float* scales, int32_t* words) {
  constexpr int64_t kWords = kQuantGroup / 8;
  constexpr float kShares[] = {1.0f, 0.94f, 0.88f, 0.82f};
  static_assert(kQuantGroup % kPackDepth == 0 && kQuantGroup <= 2 * kPackDepth, "rounded_bytes() has room for it");
  const F32 largest = largest_of(weights, finite);
  static_for<kParts>([&](auto i) ELAPID_LAMBDA {
    alignas(64) double best_errors[kPartLanes], errors[kPartLanes];
    for (double& error : best_errors) error = __builtin_inf();
    IntPart best[kWords];
    Part best_scale = part_broadcast(0);
    for (int64_t w = 0; w < kWords; ++w) best[w] = part_int(0);
    for (const float share : kShares) {
      const Part none = part_broadcast(0), scale = largest.v[i] * part_broadcast(share);
      const Part inverse = part_if_greater(scale, none, part_broadcast(1) / scale, none);
      const Doubles low_scale = low_doubles(scale), high_scale = high_doubles(scale);
      Doubles low_error = low_doubles(none), high_error = low_error;
      IntPart tried[kWords];
      static_for<static_cast<int>(kWords)>([&](auto w) ELAPID_LAMBDA {
        IntPart word = part_int(0);
        static_for<8>([&](auto j) ELAPID_LAMBDA {
          constexpr int kBit = decltype(j)::value / 2 * 4 + decltype(j)::value % 2 * 16;
          const Part x = part_load(&weights[8 * w + j][i * kPartLanes]);
          const IntPart code = part_nearest_normal_float4(x * inverse);
          const Part level = part_normal_float4(code);
          const Doubles low = low_doubles(x) - low_scale * low_doubles(level);  // the products are exact
          const Doubles high = high_doubles(x) - high_scale * high_doubles(level);
          low_error += low * low;
          high_error += high * high;
          word = part_or(word, part_shift_left<kBit>(code));
        });
        tried[w] = word;
      });
      __builtin_memcpy(errors, &low_error, sizeof low_error);
      __builtin_memcpy(errors + kPartLanes / 2, &high_error, sizeof high_error);
      alignas(64) float less[kPartLanes];
      for (int64_t lane = 0; lane < kPartLanes; ++lane) {
        less[lane] = errors[lane] < best_errors[lane] ? 1 : 0;
        if (errors[lane] < best_errors[lane]) best_errors[lane] = errors[lane];
      }
      const Part better = part_load(less);
      best_scale = part_if_greater(better, none, scale, best_scale);
      for (int64_t w = 0; w < kWords; ++w) {
        best[w] = part_bits(part_if_greater(better, none, part_floats(tried[w]), part_floats(best[w])));
      }
    }
    part_store(scales + i * kPartLanes, best_scale);
    for (int64_t w = 0; w < kWords; ++w) {
      part_store(reinterpret_cast<float*>(words + w * kPackBlock + i * kPartLanes), part_floats(best[w]));
    }
  });
}

}  // namespace

void run(Cpu cpu, const PackQuantized& a) {
  const int64_t groups = quant_groups(a.in), group_bytes = quant_group_bytes(a.packing), blocks = packed_blocks(a.out);
  parallel_for(cpu.threads, blocks, a.grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t block = begin; block < end; ++block) {
      char* to = static_cast<char*>(a.memory) + block * groups * group_bytes;
      for (int64_t g = 0; g < groups; ++g, to += group_bytes) {
        alignas(64) Group weights;
        load_block(a.rows + block * kPackBlock, a.dtype, g * kQuantGroup, a.in, weights);
        auto* const scales = reinterpret_cast<float*>(to);
        auto* const words = reinterpret_cast<int32_t*>(to + kPackBlock * 4);
        a.packing == Packing::int8 ? quantize_int8(weights, a.finite, scales, words)
                                   : quantize_int4(weights, a.finite, scales, words);
      }
    }
  });
}

}  // namespace elapid
