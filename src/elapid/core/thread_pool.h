#pragma once

// A fixed set of threads that share one machine with other programs. Work is cut into chunks that threads take as they
// come, and a job is finished when its chunks are: a worker that the kernel has descheduled between chunks delays
// nobody (barriers over all threads collapse beside one busy foreign process). Idle workers spin for a bounded time,
// then sleep. No allocation per call. Which thread runs a chunk is not defined; kernels must not let results depend on
// it.

#include "elapid/core/inline.h"

#include <atomic>
#include <cstdint>
#include <memory>

namespace elapid {

class ThreadPool {
 public:
  // `threads` ≥ 1 counts the caller. 0: as many as this process may use (affinity mask and cgroup quota).
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  [[nodiscard]] int size() const { return size_; }

  // Runs run(context, i, worker) for every i in [0, chunks) and returns when all are done. `worker` in [0, size())
  // names the thread (0 is the caller, who works too), to index scratch memory. Not reentrant: one caller at a time, no
  // nesting. `run` must not throw.
  using Run = void (*)(void* context, int64_t chunk, int worker);
  void for_each(int64_t chunks, void* context, Run run);

  static int usable_cores();

 private:
  void stop();
  struct Shared;
  std::unique_ptr<Shared> shared_;
  int size_;
};

// body(begin, end, worker) over [0, n) in pieces of `grain`. Small jobs (one piece) run on the caller without waking
// anybody.
template <class Body>
ELAPID_INLINE void parallel_for(ThreadPool& pool, int64_t n, int64_t grain, const Body& body) {
  if (n <= 0) return;
  if (grain < 1) grain = 1;
  const int64_t chunks = (n + grain - 1) / grain;
  if (chunks == 1) {
    body(int64_t{0}, n, 0);
    return;
  }
  struct Call {
    const Body* body;
    int64_t n, grain;
  } call{&body, n, grain};
  pool.for_each(chunks, &call, [](void* context, int64_t chunk, int worker) {
    const Call& c = *static_cast<const Call*>(context);
    const int64_t begin = chunk * c.grain;
    const int64_t end = begin + c.grain < c.n ? begin + c.grain : c.n;
    (*c.body)(begin, end, worker);
  });
}

}  // namespace elapid
