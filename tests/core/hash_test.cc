#include "elapid/core/hash.h"

#include <algorithm>
#include <gtest/gtest.h>
#include <vector>

namespace elapid::testing {
namespace {

std::vector<char> contents(size_t size) {
  std::vector<char> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<char>(i * 37 + 11);
  return bytes;
}

std::string hash_of(const std::vector<char>& bytes) {
  Hash hash;
  hash.add(bytes.data(), bytes.size());
  return hash.hex();
}

TEST(Hash, PiecesAreTheWhole) {
  for (const size_t size : {0, 1, 31, 32, 33, 64, 95, 96, 1000, 1024}) {
    const std::vector<char> bytes = contents(size);
    for (const size_t piece : {32, 64, 96}) {
      Hash hash;
      hash.announce(size);
      size_t at = 0;
      do {
        const size_t count = std::min(piece, size - at);
        hash.add_piece(bytes.data() + at, count);
        at += count;
      } while (at < size);
      EXPECT_EQ(hash.hex(), hash_of(bytes)) << size << " in pieces of " << piece;
    }
  }
}

TEST(Hash, SeesEveryBitAndTheLength) {
  EXPECT_EQ(hash_of({}).size(), 32u);
  for (const size_t size : {1, 32, 45}) {
    const std::string whole = hash_of(contents(size));
    for (size_t i = 0; i < size; ++i) {
      std::vector<char> changed = contents(size);
      changed[i] = static_cast<char>(changed[i] ^ 1);
      EXPECT_NE(hash_of(changed), whole) << i;
    }
    std::vector<char> longer = contents(size);
    longer.push_back(0);
    EXPECT_NE(hash_of(longer), whole);
  }
}

}  // namespace
}  // namespace elapid::testing
