#include "elapid/model/fingerprint.h"

#include "elapid/core/error.h"

#include <bit>
#include <cstring>
#include <iomanip>
#include <sstream>
#include <string_view>
#include <tuple>
#include <type_traits>

namespace elapid {
namespace {

// Four independent multiply-rotate lanes over 32 bytes a round: memory speed, and every bit reaches the result.
class Hash {
 public:
  void add(const void* data, size_t bytes) {
    const auto* p = static_cast<const unsigned char*>(data);
    mix(0, bytes);
    for (; bytes >= 32; p += 32, bytes -= 32) {
      for (size_t lane = 0; lane < 4; ++lane) {
        uint64_t word;
        std::memcpy(&word, p + lane * 8, 8);
        mix(lane, word);
      }
    }
    unsigned char rest[32] = {};
    if (bytes > 0) std::memcpy(rest, p, bytes);
    for (size_t lane = 0; lane < 4; ++lane) {
      uint64_t word;
      std::memcpy(&word, rest + lane * 8, 8);
      mix(lane, word);
    }
  }
  void add(const std::string& text) { add(text.data(), text.size()); }

  [[nodiscard]] std::string hex() const {
    const uint64_t high = finish(lanes_[0] ^ std::rotl(lanes_[1], 17)),
                   low = finish(lanes_[2] ^ std::rotl(lanes_[3], 29));
    std::ostringstream out;
    out << std::hex << std::setfill('0') << std::setw(16) << finish(high + 3 * low) << std::setw(16)
        << finish(low + 5 * high);
    return out.str();
  }

 private:
  void mix(size_t lane, uint64_t word) {
    lanes_[lane] = std::rotl((lanes_[lane] ^ word) * 0x9E3779B97F4A7C15u, 31) * 0xD6E8FEB86659FD93u;
  }
  // The finalizer of SplitMix64 (Steele, Lea & Flood 2014).
  static uint64_t finish(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }
  uint64_t lanes_[4] = {1, 2, 3, 4};
};

// A field of a configuration, exactly.
template <class T>
std::string describe(const T& field) {
  std::ostringstream out;
  if constexpr (std::is_enum_v<T>) {
    out << static_cast<int>(field);
  } else if constexpr (std::is_convertible_v<T, std::string_view> || std::is_arithmetic_v<T>) {
    out << std::hexfloat << field;
  } else {
    for (const auto& element : field) out << describe(element) << ',';
  }
  return out.str();
}

// Everything of the configuration that shapes a state or its continuation.
std::string described(const ModelConfig& c) {
  std::ostringstream out;
  const auto add = [&](const auto&... fields) { ((out << describe(fields) << ' '), ...); };
  add(c.family, c.vocab, c.d_model, c.norm.kind, c.norm.eps, c.tied_head, c.embedding_scale, c.residual_scale,
      c.logit_scale);
  for (const BlockConfig& block : c.blocks) {
    add("block", block.layer, block.reads, block.writes);
    for (const BodyUse& use : block.bodies) {
      add(use.config.index(), use.in_scale, use.out_scale);
      std::visit([&](const auto& body) { std::apply(add, body.fields()); }, use.config);
    }
  }
  return out.str();
}

}  // namespace

std::string fingerprint_of(const ModelConfig& config, const Checkpoint& weights) {
  Hash hash;
  hash.add(described(config));
  for (const auto& [name, entry] : weights.entries()) {
    hash.add(name);
    hash.add(std::string(name_of(entry.tensor.dtype)));
    hash.add(entry.tensor.data, static_cast<size_t>(entry.tensor.bytes()));
    if (entry.file) {
      entry.file->drop_pages(
          {static_cast<const std::byte*>(entry.tensor.data), static_cast<size_t>(entry.tensor.bytes())});
    }
  }
  return hash.hex();
}

std::string fingerprint_of(const ModelConfig& config, uint64_t seed) {
  Hash hash;
  hash.add(described(config));
  hash.add(concat("random ", seed));
  return hash.hex();
}

}  // namespace elapid
