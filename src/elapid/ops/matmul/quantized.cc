#include "elapid/ops/matmul/quantized.h"

#include "elapid/core/widen.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

namespace elapid {
namespace {

// Halfway between neighbouring levels.
constexpr auto kBounds = [] {
  std::array<float, 15> bounds{};
  for (size_t i = 0; i < bounds.size(); ++i) bounds[i] = (kNormalFloat4[i] + kNormalFloat4[i + 1]) / 2;
  return bounds;
}();

// By bisection without branches: which way a weight goes is a coin's toss.
unsigned nearest_normal_float4(float x) {
  unsigned code = 0;
  for (unsigned half = 8; half > 0; half /= 2) code += x > kBounds[code + half - 1] ? half : 0;
  return code;
}

// Codes for one group of weights; returns the scale.
float quantize_int8(const float* w, uint8_t* codes) {
  float largest = 0;
  for (int64_t k = 0; k < kQuantGroup; ++k) largest = std::max(largest, std::abs(w[k]));
  const float scale = largest / 127;
  for (int64_t k = 0; k < kQuantGroup; ++k) {
    const float q = scale > 0 ? std::clamp(std::nearbyint(w[k] / scale), -127.0f, 127.0f) : 0;
    codes[k] = static_cast<uint8_t>(static_cast<int8_t>(q));
  }
  return scale;
}

float quantize_int4(const float* w, uint8_t* codes) {
  float largest = 0;
  for (int64_t k = 0; k < kQuantGroup; ++k) largest = std::max(largest, std::abs(w[k]));
  float best_scale = 0;
  double best_error = std::numeric_limits<double>::infinity();  // squares of finite floats stay finite
  static_assert(kQuantGroup % kPackDepth == 0 && kQuantGroup <= 2 * kPackDepth, "rounded_bytes() has room for it");
  // Outliers that lose a little leave finer steps to all the others.
  for (const float share : {1.0f, 0.94f, 0.88f, 0.82f}) {
    const float scale = largest * share, inverse = scale > 0 ? 1 / scale : 0;
    uint8_t tried[kQuantGroup];
    double error = 0;
    for (int64_t k = 0; k < kQuantGroup; ++k) {
      tried[k] = static_cast<uint8_t>(nearest_normal_float4(w[k] * inverse));
      const double off = double{w[k]} - double{scale} * double{kNormalFloat4[tried[k]]};
      error += off * off;
    }
    if (error < best_error) {
      best_error = error;
      best_scale = scale;
      std::copy_n(tried, kQuantGroup, codes);
    }
  }
  return best_scale;
}

}  // namespace

Tensor pack_quantized(ThreadPool& threads, std::span<const Tensor> parts, Packing packing, void* memory,
                      const std::string& name) {
  const WeightRows rows(parts, "pack_quantized");
  const Shape shape = rows.shape();
  const int64_t out = shape[0], in = shape[1], groups = quant_groups(in), group_bytes = quant_group_bytes(packing);
  std::atomic<bool> finite{true};
  parallel_for(threads, packed_blocks(out), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t block = begin; block < end; ++block) {
      char* to = static_cast<char*>(memory) + block * groups * group_bytes;
      std::memset(to, 0, static_cast<size_t>(groups * group_bytes));
      for (int64_t lane = 0; lane < std::min(kPackBlock, out - block * kPackBlock); ++lane) {
        const char* from = rows[block * kPackBlock + lane];
        for (int64_t g = 0; g < groups; ++g) {
          float w[kQuantGroup] = {};
          uint8_t codes[kQuantGroup];
          const int64_t first = g * kQuantGroup;
          widen(from + first * size_of(rows.dtype()), rows.dtype(), std::min(kQuantGroup, in - first), w);
          if (!std::all_of(w, w + kQuantGroup, [](float v) { return std::isfinite(v); })) finite = false;
          const float scale = packing == Packing::int8 ? quantize_int8(w, codes) : quantize_int4(w, codes);
          char* group = to + g * group_bytes;
          std::memcpy(group + lane * 4, &scale, 4);
          auto* words = reinterpret_cast<uint32_t*>(group + kPackBlock * 4);
          for (int64_t k = 0; k < kQuantGroup; ++k) {
            const QuantPlace place = quant_place(packing, k);
            words[place.word * kPackBlock + lane] |= uint32_t{codes[k]} << place.bit;
          }
        }
      }
    }
  });
  require(finite, "pack_quantized: ", name, " must be finite, got an element that is not");
  return {memory, DType::u8, shape};
}

float quantized_weight(const Param& weight, int64_t out, int64_t in) {
  const int64_t group_bytes = quant_group_bytes(weight.packing), lane = out % kPackBlock;
  const char* group = static_cast<const char*>(weight.value.data) +
                      (out / kPackBlock * quant_groups(weight.value.cols()) + in / kQuantGroup) * group_bytes;
  float scale;
  std::memcpy(&scale, group + lane * 4, 4);
  const QuantPlace place = quant_place(weight.packing, in % kQuantGroup);
  const uint32_t word = reinterpret_cast<const uint32_t*>(group + kPackBlock * 4)[place.word * kPackBlock + lane];
  if (weight.packing == Packing::int8) return scale * static_cast<float>(static_cast<int8_t>(word >> place.bit));
  return scale * kNormalFloat4[word >> place.bit & 15];
}

}  // namespace elapid
