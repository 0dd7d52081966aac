// torch.save's files: every byte of every tensor that is handed out can be read, and copies are no larger than the
// file.

#include "elapid/io/torch_file.h"

#include "fuzz/property.h"

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace elapid;  // NOLINT: the entry point must be global
  succeeds([&] {
    const StoredTensors tensors = parse_torch_file(std::as_bytes(std::span(data, size)), "input");
    uint64_t copied = 0;
    for (const auto& [name, entry] : tensors) {
      const Tensor& tensor = entry.tensor;
      const auto* const begin = static_cast<const uint8_t*>(tensor.data);
      const std::span bytes(begin, static_cast<size_t>(tensor.bytes()));
      volatile uint64_t sum = std::accumulate(bytes.begin(), bytes.end(), uint64_t{0});
      (void)sum;
      expect(tensor.data != nullptr && tensor.dense(), "tensors are present and dense");
      const bool is_view = begin >= data && begin + bytes.size() <= data + size;
      expect(is_view != (entry.file != nullptr), "tensors are views of the file or have memory of their own");
      if (!is_view) copied += bytes.size();
    }
    expect(copied <= size, "copies are no larger than the file");
  });
  return 0;
}
