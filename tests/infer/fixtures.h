#pragma once

// What the tests of this folder share.

#include "elapid/core/random.h"
#include "elapid/infer/engine.h"
#include "tests/model/fixtures.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

namespace elapid::testing {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;  // an order of magnitude slower
#else
inline constexpr bool kSanitized = false;
#endif

inline std::vector<TokenId> random_ids(int64_t count, int64_t vocab, uint64_t seed) {
  std::vector<TokenId> ids;
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(static_cast<TokenId>(uniform(seed, static_cast<uint64_t>(i), 0) * static_cast<double>(vocab)));
  }
  return ids;
}

inline std::vector<float> values_of(const Tensor& tensor) {
  return {tensor.ptr<float>(), tensor.ptr<float>() + tensor.size()};
}

inline TokenId argmax(const float* logits, int64_t vocab) {
  return static_cast<TokenId>(std::max_element(logits, logits + vocab) - logits);
}

// An i64 tensor of a file as ids.
inline std::vector<TokenId> ids_of(const Tensor& tensor) {
  std::vector<TokenId> ids;
  for (int64_t i = 0; i < tensor.size(); ++i) {
    int64_t id;
    std::memcpy(&id, static_cast<const char*>(tensor.data) + i * 8, 8);
    ids.push_back(static_cast<TokenId>(id));
  }
  return ids;
}

}  // namespace elapid::testing
