#pragma once

// Where tensors live and kernels run. kWithCuda tells whether this build has the CUDA half at all; code that needs it
// is guarded by `if constexpr`, so a CPU build neither references nor stubs it.

#include <cstdint>
#include <string>
#include <vector>

namespace elapid {

enum class DeviceType : uint8_t { cpu, cuda };

struct Device {
  DeviceType type = DeviceType::cpu;
  int index = 0;
};

#ifdef ELAPID_WITH_CUDA
inline constexpr bool kWithCuda = true;
#else
inline constexpr bool kWithCuda = false;
#endif

struct CudaDevice {
  int index;
  std::string name;
  int major, minor;  // compute capability
  int64_t bytes;     // of memory
};

// What this machine has; empty without a driver. Defined in builds with CUDA only: call it under `if constexpr
// (kWithCuda)`.
std::vector<CudaDevice> cuda_devices();

}  // namespace elapid
