#pragma once

// What a state file remembers of its model: a 128-bit hash of the configuration's mathematics and of every weight.
// Guards against mistakes, not against forgery.

#include "elapid/core/hash.h"
#include "elapid/io/checkpoint.h"
#include "elapid/model/config.h"

#include <string>

namespace elapid {

// 32 hexadecimal digits. Reads all tensors once.
std::string fingerprint_of(const ModelConfig& config, const Checkpoint& weights);
std::string fingerprint_of(const ModelConfig& config, uint64_t seed);

// Adds bytes, of this file or of memory (null), a few at a time: a large table's pages are not all resident at once.
void add_mapped(Hash& hash, const MappedFile* file, Bytes bytes);

}  // namespace elapid
