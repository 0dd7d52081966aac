// Tensor files: every byte of every tensor that is handed out can be read.

#include "elapid/io/safetensors.h"

#include "fuzz/property.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <span>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace elapid;  // NOLINT: the entry point must be global
  succeeds([&] {
    const Safetensors file = Safetensors::parse(std::as_bytes(std::span(data, size)), "input");
    int64_t total = 0;
    for (const auto& [name, entry] : file.entries()) {
      const Tensor& tensor = entry.tensor;
      const std::span bytes(static_cast<const uint8_t*>(tensor.data), static_cast<size_t>(tensor.bytes()));
      volatile uint64_t sum = std::accumulate(bytes.begin(), bytes.end(), uint64_t{0});
      (void)sum;
      expect(tensor.data != nullptr && tensor.dense(), "tensors are present and dense");
      expect(&file.at(name) == &tensor, "every entry is found by name");
      total += tensor.bytes();
    }
    uint64_t header = 0;
    std::memcpy(&header, data, sizeof(header));
    expect(static_cast<uint64_t>(total) == size - sizeof(header) - header, "tensors cover the data");
  });
  return 0;
}
