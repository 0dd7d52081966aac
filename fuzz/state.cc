// State files.

#include "elapid/state/state.h"

#include "fuzz/property.h"

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace elapid;  // NOLINT: the entry point must be global
  succeeds([&] {
    const Bytes bytes = std::as_bytes(std::span(data, size));
    const State state = State::parse(bytes, "input");
    for (int64_t i = 0; i < state.entry_count(); ++i) {
      const Tensor entry = state.entry(i);
      expect(entry.dense(), "entries are dense");
      const std::span content(static_cast<const uint8_t*>(entry.data), static_cast<size_t>(entry.bytes()));
      volatile uint64_t sum = std::accumulate(content.begin(), content.end(), uint64_t{0});
      (void)sum;
    }
    expect(state == State::parse(bytes, "again"), "reading twice gives equal states");
  });
  return 0;
}
