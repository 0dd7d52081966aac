// The CUDA half of device.h; part of builds with ELAPID_CUDA only.

#include "elapid/core/device.h"
#include "elapid/core/error.h"

#include <cuda_runtime.h>

namespace elapid {
namespace {

void check(cudaError_t status, const char* call) {
  require(status == cudaSuccess, "cuda: ", call, " must succeed, got ", cudaGetErrorString(status));
}

}  // namespace

std::vector<CudaDevice> cuda_devices() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  // A machine without a driver or a GPU is not an error: it has no devices.
  if (status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver) return {};
  check(status, "cudaGetDeviceCount");
  std::vector<CudaDevice> devices;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, i), "cudaGetDeviceProperties");
    devices.push_back(
        {i, properties.name, properties.major, properties.minor, static_cast<int64_t>(properties.totalGlobalMem)});
  }
  return devices;
}

}  // namespace elapid
