#include "elapid/ops/ssd_scan/ssd_scan_cpu.h"

namespace elapid {

void run(Cpu cpu, const SsdScanForward& a) {
  for_scans(
      cpu, a,
      [&](int64_t token, int64_t length, int64_t group, int64_t, float* chunk, int worker) {
        chunk_scores(a, token, length, group, chunk, a.scratch.row<float>(worker));
      },
      [&](int64_t sequence, int64_t head, int64_t, int worker) {
        HeadScan(a, head, a.scratch.row<float>(worker)).run(sequence);
      });
}

}  // namespace elapid
