#pragma once

// Counts this program's heap allocations: its operator new is replaced.

#include <cstdint>

namespace elapid::testing {

// So far, on all threads.
int64_t allocation_count();

}  // namespace elapid::testing
