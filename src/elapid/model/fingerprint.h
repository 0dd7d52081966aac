#pragma once

// What a state file remembers of its model: a 128-bit hash of the configuration's mathematics and of every weight.
// Guards against mistakes, not against forgery.

#include "elapid/io/checkpoint.h"
#include "elapid/model/config.h"

#include <string>

namespace elapid {

// 32 hexadecimal digits. Reads all tensors once.
std::string fingerprint_of(const ModelConfig& config, const Checkpoint& weights);
std::string fingerprint_of(const ModelConfig& config, uint64_t seed);

}  // namespace elapid
