#pragma once

#include "elapid/core/thread_pool.h"

namespace elapid {

// body(i, worker) once for every i in [0, n). Threads begin far apart and go on in order, so that what neighbours share
// stays in a core's cache; a thread that has finished its own stretch helps with the others'.
template <class Body>
ELAPID_INLINE void parallel_walk(ThreadPool& pool, int64_t n, const Body& body) {
  constexpr int64_t kMost = 256;
  struct alignas(64) Stretch {
    int64_t next, end;
  } stretches[kMost];
  const int64_t wanted = pool.size() < kMost ? pool.size() : kMost, count = n < wanted ? n : wanted;
  for (int64_t s = 0; s < count; ++s) stretches[s] = {n * s / count, n * (s + 1) / count};
  parallel_for(pool, count, 1, [&](int64_t own, int64_t, int worker) {
    for (int64_t k = 0; k < count; ++k) {
      Stretch& s = stretches[(own + k) % count];
      for (int64_t i; (i = __atomic_fetch_add(&s.next, 1, __ATOMIC_RELAXED)) < s.end;) body(i, worker);
    }
  });
}

}  // namespace elapid
