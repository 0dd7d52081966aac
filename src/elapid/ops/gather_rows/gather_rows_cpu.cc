#include "elapid/cpu/simd.h"
#include "elapid/ops/gather_rows/gather_rows.h"

namespace elapid {

void run(Cpu cpu, const GatherRowsForward& a) {
  const auto bytes = static_cast<size_t>(a.x.cols()) * sizeof(float);
  parallel_for(cpu.threads, a.y.rows(), 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      std::memcpy(a.y.row<float>(r), a.x.row<float>(a.rows.ptr<int64_t>()[r]), bytes);
    }
  });
}

}  // namespace elapid
