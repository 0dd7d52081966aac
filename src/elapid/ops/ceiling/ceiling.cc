#include "elapid/ops/ceiling/ceiling.h"

#include "elapid/core/buffer.h"

#include <algorithm>
#include <chrono>

namespace elapid {
namespace {

template <class Work>
double seconds_of(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Ceilings measure_ceilings(Context& ctx, double seconds) {
  Ceilings best;
  const Arena::Scope scope(ctx.arena);
  const Tensor sums = ctx.arena.alloc({ctx.threads.size()}, DType::f32);
  // Larger than last-level caches of servers, so that what is timed is memory.
  const Buffer buffer(int64_t{512} << 20);
  const Tensor memory(buffer.data(), DType::f32, {buffer.bytes() / 4});
  std::fill_n(memory.ptr<float>(), memory.size(), 1.0f);
  for (double spent = 0; spent < seconds;) {
    const double s = seconds_of([&] { launch(ctx, ReadMemory{memory, sums}); });
    best.read_gb_s = std::max(best.read_gb_s, static_cast<double>(memory.bytes()) / s * 1e-9);
    spent += s;
  }
  const int64_t rounds = 2000;
  for (double spent = 0; spent < seconds;) {
    const double s = seconds_of([&] { launch(ctx, MultiplyAdd{sums, rounds}); });
    const double operations = static_cast<double>(rounds * kMultiplyAddFlops) * ctx.threads.size();
    best.tflops = std::max(best.tflops, operations / s * 1e-12);
    spent += s;
  }
  best.bf16_tflops = best.tflops;
  if (active_isa() != Isa::amx) return best;
  best.bf16_tflops = 0;
  const int64_t tile_rounds = 100000;
  for (double spent = 0; spent < seconds;) {
    const double s = seconds_of([&] { run(Amx{ctx.threads}, MultiplyTiles{sums, tile_rounds}); });
    const double operations = static_cast<double>(tile_rounds * kMultiplyTilesFlops) * ctx.threads.size();
    best.bf16_tflops = std::max(best.bf16_tflops, operations / s * 1e-12);
    spent += s;
  }
  return best;
}

double measure_exponentials(Context& ctx, double seconds) {
  double best = 0;
  const Arena::Scope scope(ctx.arena);
  const Tensor sums = ctx.arena.alloc({ctx.threads.size()}, DType::f32);
  const int64_t rounds = 100;
  for (double spent = 0; spent < seconds;) {
    const double s = seconds_of([&] { launch(ctx, Exponentials{sums, rounds}); });
    best = std::max(best, static_cast<double>(rounds * kExponentials) * ctx.threads.size() / s);
    spent += s;
  }
  return best;
}

}  // namespace elapid
