#include "elapid/infer/prefix_cache.h"

#include "elapid/core/error.h"

#include <algorithm>

namespace elapid {
namespace {

// Of a prefix, token by token. Equal hashes of different prefixes are told apart by their tokens, and cost a miss.
uint64_t mix(uint64_t hash, TokenId token) {
  hash = (hash ^ static_cast<uint32_t>(token)) * 0x9E3779B97F4A7C15u;
  return hash ^ (hash >> 32);
}
constexpr uint64_t kEmpty = 0xD6E8FEB86659FD93u;

int64_t bytes_of(const State& state) {
  int64_t bytes = static_cast<int64_t>(state.tokens().size() * sizeof(TokenId));
  for (int64_t i = 0; i < state.entry_count(); ++i) bytes += state.entry(i).bytes();
  return bytes;
}

}  // namespace

PrefixCache::PrefixCache(int64_t bytes) : limit_(bytes) {
  require(bytes >= 0, "prefix cache: bytes must not be negative, got ", bytes);
}

std::optional<State> PrefixCache::find(std::span<const TokenId> tokens) {
  auto best = entries_.end();
  uint64_t hash = kEmpty;
  auto length = lengths_.begin();
  for (int64_t n = 0; length != lengths_.end(); ++n) {
    if (n == length->first) {
      const auto found = by_hash_.find(hash);
      if (found != by_hash_.end() &&
          std::ranges::equal(found->second->state.tokens(), tokens.first(static_cast<size_t>(n)))) {
        best = found->second;
      }
      ++length;
    }
    if (n == std::ssize(tokens)) break;
    hash = mix(hash, tokens[static_cast<size_t>(n)]);
  }
  if (best == entries_.end()) return {};
  entries_.splice(entries_.begin(), entries_, best);
  return best->state;
}

void PrefixCache::insert(const State& state) {
  const int64_t size = bytes_of(state);
  if (size > limit_) return;
  uint64_t hash = kEmpty;
  for (const TokenId token : state.tokens()) hash = mix(hash, token);
  if (const auto old = by_hash_.find(hash); old != by_hash_.end()) erase(old->second);
  while (bytes_ + size > limit_) erase(std::prev(entries_.end()));
  entries_.push_front({hash, state});
  by_hash_[hash] = entries_.begin();
  ++lengths_[std::ssize(state.tokens())];
  bytes_ += size;
}

void PrefixCache::erase(Entries::iterator entry) {
  const auto length = lengths_.find(std::ssize(entry->state.tokens()));
  if (--length->second == 0) lengths_.erase(length);
  bytes_ -= bytes_of(entry->state);
  by_hash_.erase(entry->hash);
  entries_.erase(entry);
}

}  // namespace elapid
