#include "elapid/ops/matmul/quantized.h"

#include "elapid/ops/matmul/pack.h"

#include <cstring>

namespace elapid {

Tensor pack_quantized(ThreadPool& threads, std::span<const Tensor> parts, Packing packing, void* memory,
                      const std::string& name) {
  const WeightRows rows(parts, "pack_quantized");
  const BlockRows blocks(rows);
  const int64_t out = rows.shape()[0], in = rows.shape()[1];
  const int64_t grain = blocks_per_task(threads, packed_blocks(out), quantized_bytes({kPackBlock, in}, packing));
  bool finite = true;
  launch_on_cpu(threads, PackQuantized{blocks.addresses(), out, in, rows.dtype(), packing, memory, &finite, grain});
  require(finite, "pack_quantized: ", name, " must be finite, got an element that is not");
  return {memory, DType::u8, rows.shape()};
}

float quantized_weight(const Param& weight, int64_t out, int64_t in) {
  const int64_t group_bytes = quant_group_bytes(weight.packing), lane = out % kPackBlock;
  const char* group = static_cast<const char*>(weight.value.data) +
                      (out / kPackBlock * quant_groups(weight.value.cols()) + in / kQuantGroup) * group_bytes;
  float scale;
  std::memcpy(&scale, group + lane * 4, 4);
  const QuantPlace place = quant_place(weight.packing, in % kQuantGroup);
  const uint32_t word = reinterpret_cast<const uint32_t*>(group + kPackBlock * 4)[place.word * kPackBlock + lane];
  if (weight.packing == Packing::int8) return scale * static_cast<float>(static_cast<int8_t>(word >> place.bit));
  return scale * kNormalFloat4[word >> place.bit & 15];
}

}  // namespace elapid
