#pragma once

// Kernels behind pack_weight() and pack_quantized(): rows of a checkpoint → the packed orders of matmul.h and
// quantized.h. Sixteen rows at a time are transposed in registers; every level writes the same bits.

#include "elapid/core/kernel.h"
#include "elapid/core/param.h"
#include "elapid/ops/matmul/matmul.h"

#include <algorithm>
#include <vector>

namespace elapid {

// Where every row of every block begins. The outputs that the last block lacks are rows of zeros.
class BlockRows {
 public:
  explicit BlockRows(const WeightRows& rows);

  [[nodiscard]] const char* const* addresses() const { return addresses_.data(); }

 private:
  std::vector<char> zeros_;
  std::vector<const char*> addresses_;
};

// Blocks of `bytes` each a task: tasks write about a huge page each, so that threads seldom meet in one that has to be
// cleared first, as long as every thread gets a few.
inline int64_t blocks_per_task(const ThreadPool& threads, int64_t blocks, int64_t bytes) {
  return std::min((int64_t{2} << 20) / std::max<int64_t>(bytes, 1) + 1, blocks / (4 * threads.size()) + 1);
}

struct PackWeights {
  const char* const* rows;  // packed_blocks(out) times kPackBlock addresses, at any alignment
  int64_t out, in;
  DType dtype, packed;  // of the rows (f32, bf16 or f16), and that or bf16
  void* memory;
  int64_t grain;  // blocks_per_task()
};
ELAPID_KERNEL(PackWeights)

struct PackQuantized {
  const char* const* rows;
  int64_t out, in;
  DType dtype;
  Packing packing;  // int8 or int4
  void* memory;
  bool* finite;  // set to false when a weight is not
  int64_t grain;
};
ELAPID_KERNEL(PackQuantized)

}  // namespace elapid
