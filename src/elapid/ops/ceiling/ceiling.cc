#include "elapid/ops/ceiling/ceiling.h"

#include "elapid/core/buffer.h"
#include "elapid/ops/matmul/matmul.h"
#include "elapid/ops/uniform/uniform.h"

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

Ceilings measure_on_device(Context& ctx, double seconds) {
  Ceilings best;
  if constexpr (kWithCuda) {
    constexpr int64_t kCopied = int64_t{2} << 30, kSide = 8192, kTimes = 4;
    const Arena::Scope scope(ctx.arena);
    // The best of several rounds of kTimes, after one that is not timed.
    const auto rate = [&](double amount, const auto& work) {
      double most = 0;
      work();
      synchronize(ctx.stream);
      for (double spent = 0; spent < seconds;) {
        const double s = seconds_of([&] {
          for (int64_t i = 0; i < kTimes; ++i) work();
          synchronize(ctx.stream);
        });
        most = std::max(most, amount * kTimes / s);
        spent += s;
      }
      return most;
    };
    // Random values: zeros are faster.
    Buffer random(kSide * kSide * size_of(DType::bf16));
    const Tensor values(random.data(), DType::bf16, {kSide, kSide});
    fill_uniform(ctx.threads, {1, 0, -1, 1, values});
    const Tensor x = ctx.arena.alloc(values.shape, DType::bf16);
    Param weight{"weight", ctx.arena.alloc(values.shape, DType::bf16), Packing::rows, Arithmetic::bf16};
    const Tensor y = ctx.arena.alloc(values.shape, DType::bf16);
    for (const Tensor& t : {x, weight.value}) copy_async(t.data, values.data, values.bytes(), ctx.stream);
    best.bf16_tflops = 1e-12 * rate(2.0 * kSide * kSide * kSide, [&] { matmul(ctx, x, weight, {.out = y}); });
    const Tensor from = ctx.arena.alloc({kCopied}, DType::u8), to = ctx.arena.alloc({kCopied}, DType::u8);
    for (int64_t at = 0; at < kCopied; at += values.bytes()) {
      copy_async(from.ptr<uint8_t>() + at, values.data, values.bytes(), ctx.stream);
    }
    best.read_gb_s = 1e-9 * rate(2.0 * kCopied, [&] { copy_async(to.data, from.data, kCopied, ctx.stream); });
  }
  return best;
}

}  // namespace

Ceilings measure_ceilings(Context& ctx, double seconds) {
  if (on_cuda(ctx.device)) return measure_on_device(ctx, seconds);
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
