#include "elapid/model/fingerprint.h"

#include "elapid/core/error.h"

#include <algorithm>
#include <sstream>
#include <string_view>
#include <tuple>
#include <type_traits>

namespace elapid {
namespace {

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

void add_mapped(Hash& hash, const MappedFile* file, Bytes bytes) {
  constexpr size_t kAtOnce = size_t{8} << 20;
  static_assert(kAtOnce % Hash::kPiece == 0);
  hash.announce(bytes.size());
  do {
    const Bytes piece = bytes.first(std::min(bytes.size(), kAtOnce));
    hash.add_piece(piece.data(), piece.size());
    if (file != nullptr) file->drop_pages(piece);
    bytes = bytes.subspan(piece.size());
  } while (!bytes.empty());
}

std::string fingerprint_of(const ModelConfig& config, const Checkpoint& weights) {
  Hash hash;
  hash.add(described(config));
  for (const auto& [name, entry] : weights.entries()) {
    hash.add(name);
    hash.add(std::string(name_of(entry.tensor.dtype)));
    add_mapped(hash, entry.file.get(),
               {static_cast<const std::byte*>(entry.tensor.data), static_cast<size_t>(entry.tensor.bytes())});
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
