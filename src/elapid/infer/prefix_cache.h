#pragma once

// PrefixCache: states of token prefixes, so that a prompt which begins like an earlier one is not read again. A
// recurrent state cannot be cut back, so states are kept at boundaries that the caller chooses (the end of a system
// prompt, of a turn, of a prompt) and the longest one that is a prefix of what is asked for wins.

#include "elapid/state/state.h"

#include <cstdint>
#include <list>
#include <map>
#include <optional>
#include <span>
#include <unordered_map>

namespace elapid {

class PrefixCache {
 public:
  // Holds at most `bytes` of states; the one whose use lies furthest back goes first.
  explicit PrefixCache(int64_t bytes);

  // The state of the longest kept prefix of `tokens`, possibly all of them; empty when none is kept. Its tokens() are
  // that prefix. Takes time linear in `tokens`.
  std::optional<State> find(std::span<const TokenId> tokens);
  // Keeps a state under its tokens(), in place of an older one. One that is larger than the whole cache is not kept.
  void insert(const State& state);

  [[nodiscard]] int64_t bytes() const { return bytes_; }  // in use
  [[nodiscard]] int64_t size() const { return static_cast<int64_t>(entries_.size()); }

 private:
  struct Entry {
    uint64_t hash;
    State state;
  };
  using Entries = std::list<Entry>;  // most recently used first

  void erase(Entries::iterator entry);

  int64_t limit_, bytes_ = 0;
  Entries entries_;
  std::unordered_map<uint64_t, Entries::iterator> by_hash_;  // of the prefix
  std::map<int64_t, int64_t> lengths_;                       // how many entries have so many tokens
};

}  // namespace elapid
