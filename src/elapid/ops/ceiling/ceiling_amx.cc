#include "elapid/cpu/amx.h"
#include "elapid/ops/ceiling/ceiling.h"

namespace elapid {

void run(Amx cpu, const MultiplyTiles& a) {
  parallel_for(cpu.threads, a.sums.size(), 1, [&](int64_t, int64_t, int worker) {
    const Tiles configured;
    alignas(64) BFloat16 operand[512];
    for (int i = 0; i < 512; ++i) operand[i] = to_bf16(static_cast<float>(i % 13 - 6));
    alignas(64) float sums[256];
    for (float& s : sums) s = 0;
    settle_memory();
    _tile_loadd(0, sums, 64);
    _tile_loadd(1, sums, 64);
    _tile_loadd(4, operand, 64);
    _tile_loadd(6, operand, 64);
    // Four live tiles: beside a busy sibling hyperthread, eight of them leave none to rename, at half the speed or
    // less.
    for (int64_t i = 0; i < a.rounds; ++i) {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 6);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 6);
    }
    _tile_stored(0, sums, 64);
    a.sums.ptr<float>()[worker] = sums[0];
  });
}

}  // namespace elapid
