#include "elapid/core/thread_pool.h"

#include "elapid/core/error.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <linux/futex.h>
#include <sched.h>
#include <string>
#include <sys/syscall.h>
#include <system_error>
#include <thread>
#include <time.h>
#include <unistd.h>
#include <vector>

namespace elapid {
namespace {

// How long an idle thread spins before it sleeps. A decode step issues a job every few microseconds, and waking a
// sleeper costs 5 to 50 µs; beyond that, spinning only takes time from other programs.
constexpr int64_t kSpinNanoseconds = 50'000;

int64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

void futex_wait(std::atomic<uint32_t>& word, uint32_t expected) {
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
}
void futex_wake(std::atomic<uint32_t>& word, int count) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0);
}

// True once `done()` holds; false after the spin limit.
template <class Done>
bool spin_until(const Done& done) {
  const int64_t start = now_ns();
  for (;;) {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      __builtin_ia32_pause();
    }
    if (now_ns() - start > kSpinNanoseconds) return false;
  }
}

// A quota in cores as a version 2 group's cpu.max says it, or 0 when there is none.
double quota_of(const std::string& group) {
  std::ifstream file(group + "/cpu.max");
  std::string quota;
  double period = 0;
  return file >> quota >> period && quota != "max" && period > 0 ? std::atof(quota.c_str()) / period : 0;
}

// The least CPU quota of the process's control groups in cores, or 0 when there is none. Version 2 first, then version
// 1. A group's parents limit it, too; where a container shows its own group as the root, the path is "/".
double cgroup_cores() {
  const std::string root = "/sys/fs/cgroup";
  std::ifstream groups("/proc/self/cgroup");
  std::string path;
  for (std::string line; std::getline(groups, line);) {
    if (line.starts_with("0::/")) path = line.substr(3);
  }
  double least = quota_of(root);
  for (size_t end = path.size(); end > 1; end = path.rfind('/', end - 1)) {
    const double cores = quota_of(root + path.substr(0, end));
    if (cores > 0 && (least == 0 || cores < least)) least = cores;
  }
  if (least > 0) return least;
  std::ifstream q(root + "/cpu/cpu.cfs_quota_us"), p(root + "/cpu/cpu.cfs_period_us");
  double microseconds = 0, period = 0;
  if (q >> microseconds && p >> period && microseconds > 0 && period > 0) return microseconds / period;
  return 0;
}

}  // namespace

// One job at a time. `ticket` holds {epoch: 32 bits, next chunk: 32 bits}; a thread takes a chunk by advancing it with
// a compare-and-swap, which fails when the job has changed meanwhile. So a worker that wakes late reads fields of
// whatever job is current, and can never run a chunk twice or with another job's context. Chunk counts are capped at
// 2^31; larger jobs run several chunks per ticket.
struct ThreadPool::Shared {
  alignas(64) std::atomic<uint64_t> ticket{0};
  alignas(64) std::atomic<Run> run{nullptr};
  std::atomic<void*> context{nullptr};
  std::atomic<int64_t> chunks{0};
  std::atomic<int64_t> per_ticket{1};
  std::atomic<uint32_t> tickets{0};
  alignas(64) std::atomic<uint32_t> finished{0};      // tickets of the current job that are done
  alignas(64) std::atomic<uint32_t> epoch_signal{0};  // what sleeping workers wait on
  std::atomic<uint32_t> sleepers{0};
  alignas(64) std::atomic<uint32_t> caller_sleeps{0};
  std::atomic<bool> stop{false};
  std::vector<std::thread> workers;

  static uint32_t epoch_of(uint64_t t) { return static_cast<uint32_t>(t >> 32); }
  static uint32_t next_of(uint64_t t) { return static_cast<uint32_t>(t); }
  static uint64_t pack(uint32_t epoch, uint32_t next) { return (uint64_t{epoch} << 32) | next; }

  // Takes and runs tickets of the job `epoch` until none is left.
  void work(uint32_t epoch, int worker) {
    for (;;) {
      uint64_t t = ticket.load(std::memory_order_acquire);
      if (epoch_of(t) != epoch) return;
      const Run r = run.load(std::memory_order_relaxed);
      void* const c = context.load(std::memory_order_relaxed);
      const int64_t n = chunks.load(std::memory_order_relaxed);
      const int64_t per = per_ticket.load(std::memory_order_relaxed);
      const uint32_t last = tickets.load(std::memory_order_relaxed);
      const uint32_t i = next_of(t);
      if (i >= last) return;
      // acq_rel: the fields above were read before the exchange succeeds, hence belong to this epoch.
      if (!ticket.compare_exchange_weak(t, pack(epoch, i + 1), std::memory_order_acq_rel, std::memory_order_relaxed)) {
        continue;
      }
      const int64_t end = std::min(n, (int64_t{i} + 1) * per);
      for (int64_t chunk = int64_t{i} * per; chunk < end; ++chunk) r(c, chunk, worker);
      if (finished.fetch_add(1, std::memory_order_seq_cst) + 1 == last &&
          caller_sleeps.load(std::memory_order_seq_cst) != 0) {
        futex_wake(finished, 1);
      }
    }
  }

  void worker_loop(int worker) {
    uint32_t seen = 0;
    for (;;) {
      uint32_t now = 0;
      const auto changed = [&] {
        now = epoch_signal.load(std::memory_order_acquire);
        return now != seen;
      };
      if (!spin_until(changed)) {
        sleepers.fetch_add(1, std::memory_order_seq_cst);
        while (!changed()) futex_wait(epoch_signal, seen);
        sleepers.fetch_sub(1, std::memory_order_seq_cst);
      }
      seen = now;
      if (stop.load(std::memory_order_acquire)) return;
      work(now, worker);
    }
  }
};

int ThreadPool::usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set)
                                                          : static_cast<int>(std::thread::hardware_concurrency());
  const double quota = cgroup_cores();
  if (quota > 0) cores = std::min(cores, std::max(1, static_cast<int>(std::lround(quota))));
  return std::max(cores, 1);
}

ThreadPool::ThreadPool(int threads) : shared_(std::make_unique<Shared>()), size_(threads) {
  require(threads >= 0 && threads <= 1024, "thread pool: threads must be 0 (all) to 1024, got ", threads);
  if (size_ == 0) size_ = usable_cores();
  shared_->workers.reserve(static_cast<size_t>(size_));
  try {
    for (int i = 1; i < size_; ++i) {
      shared_->workers.emplace_back([shared = shared_.get(), i] { shared->worker_loop(i); });
    }
  } catch (const std::system_error& error) {
    const size_t started = shared_->workers.size() + 1;
    stop();
    fail(concat("thread pool: this machine must be able to run ", size_, " threads, got ", started, " and then ",
                error.code().message()));
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  shared_->stop.store(true, std::memory_order_release);
  shared_->epoch_signal.fetch_add(1, std::memory_order_seq_cst);
  futex_wake(shared_->epoch_signal, size_);
  for (std::thread& t : shared_->workers) t.join();
}

void ThreadPool::for_each(int64_t chunks, void* context, Run run) {
  if (chunks <= 0) return;
  if (size_ == 1 || chunks == 1) {
    for (int64_t i = 0; i < chunks; ++i) run(context, i, 0);
    return;
  }
  Shared& s = *shared_;
  constexpr int64_t kMostTickets = int64_t{1} << 30;
  const int64_t per_ticket = (chunks + kMostTickets - 1) / kMostTickets;
  const auto tickets = static_cast<uint32_t>((chunks + per_ticket - 1) / per_ticket);
  const uint32_t epoch = s.epoch_signal.load(std::memory_order_relaxed) + 1;
  // Close the old job's ticket before its fields change: a straggler's exchange can then only fail.
  s.ticket.store(Shared::pack(epoch, UINT32_MAX), std::memory_order_seq_cst);
  s.run.store(run, std::memory_order_seq_cst);
  s.context.store(context, std::memory_order_seq_cst);
  s.chunks.store(chunks, std::memory_order_seq_cst);
  s.per_ticket.store(per_ticket, std::memory_order_seq_cst);
  s.tickets.store(tickets, std::memory_order_seq_cst);
  s.finished.store(0, std::memory_order_seq_cst);
  s.ticket.store(Shared::pack(epoch, 0), std::memory_order_seq_cst);
  s.epoch_signal.store(epoch, std::memory_order_seq_cst);
  if (s.sleepers.load(std::memory_order_seq_cst) != 0) futex_wake(s.epoch_signal, size_);

  s.work(epoch, 0);

  const auto all_done = [&] { return s.finished.load(std::memory_order_acquire) == tickets; };
  if (all_done() || spin_until(all_done)) return;
  // Somebody holds the last chunks and is not running: free this core, so that the kernel can move it here.
  s.caller_sleeps.store(1, std::memory_order_seq_cst);
  for (;;) {
    const uint32_t seen = s.finished.load(std::memory_order_seq_cst);
    if (seen == tickets) break;
    futex_wait(s.finished, seen);
  }
  s.caller_sleeps.store(0, std::memory_order_seq_cst);
}

}  // namespace elapid
