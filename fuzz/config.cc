// A checkpoint's config.json, and the names of tensors that follow from it.

#include "elapid/model/config.h"

#include "elapid/model/checkpoint_rules.h"
#include "fuzz/property.h"

#include <cstddef>
#include <cstdint>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace elapid;  // NOLINT: the entry point must be global
  succeeds([&] {
    const ModelConfig config = parse_config({reinterpret_cast<const char*>(data), size}, "input");
    expect(config.vocab > 0 && config.d_model > 0, "a config that is accepted has sizes");
    expect(!config.family.empty(), "a config that is accepted has a family");
    expect(checkpoint_rules(config).contains(kHeadName), "a config that is accepted has names");
  });
  return 0;
}
