// The CUDA half of device.h; part of builds with ELAPID_CUDA only.

#include "elapid/core/device.h"
#include "elapid/core/error.h"

#include <algorithm>
#include <cuda.h>
#include <cuda_runtime.h>
#include <sstream>
#include <string_view>

namespace elapid {
namespace {

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // else the next launch would report this one
  fail(concat("cuda: ", call, " must succeed, got ", cudaGetErrorString(status)));
}

// One entry of cuda_architectures(): "80-real", "90a-real", "80-virtual", "80" (both).
bool entry_runs_on(std::string_view entry, int major, int minor) {
  int number = 0;
  size_t at = 0;
  while (at < entry.size() && entry[at] >= '0' && entry[at] <= '9') number = number * 10 + (entry[at++] - '0');
  const bool exact = at < entry.size() && entry[at] == 'a';
  const std::string_view kind = entry.substr(std::min(entry.find('-'), entry.size()));
  const int capability = major * 10 + minor;
  if (exact) return capability == number;
  // Machine code runs on later minor versions of its own major one; PTX on everything later.
  return (kind != "-virtual" && number / 10 == major && number <= capability) ||
         (kind != "-real" && number <= capability);
}

// Calls for a device before another has been chosen would run on device 0.
void select(int index) { check(cudaSetDevice(index), "cudaSetDevice"); }

// A function of the driver, looked up when it is first needed: a program linked against the driver would not start
// without one.
template <class Function>
Function* driver_function(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result{};
  check(cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &result),
        "cudaGetDriverEntryPoint");
  require(result == cudaDriverEntryPointSuccess && function != nullptr, "cuda: the driver must have ", name,
          ", got none");
  return reinterpret_cast<Function*>(function);
}

struct VirtualMemory {
  decltype(cuMemAddressReserve)* reserve = driver_function<decltype(cuMemAddressReserve)>("cuMemAddressReserve");
  decltype(cuMemAddressFree)* free = driver_function<decltype(cuMemAddressFree)>("cuMemAddressFree");
  decltype(cuMemCreate)* create = driver_function<decltype(cuMemCreate)>("cuMemCreate");
  decltype(cuMemRelease)* release = driver_function<decltype(cuMemRelease)>("cuMemRelease");
  decltype(cuMemMap)* map = driver_function<decltype(cuMemMap)>("cuMemMap");
  decltype(cuMemUnmap)* unmap = driver_function<decltype(cuMemUnmap)>("cuMemUnmap");
  decltype(cuMemSetAccess)* set_access = driver_function<decltype(cuMemSetAccess)>("cuMemSetAccess");

  static const VirtualMemory& functions() {
    static const VirtualMemory found;
    return found;
  }
};

CUdeviceptr address_of(void* p) { return reinterpret_cast<CUdeviceptr>(p); }

cudaStream_t as_stream(void* stream) { return static_cast<cudaStream_t>(stream); }

}  // namespace

std::vector<CudaDevice> cuda_devices() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  // A machine without a driver or a GPU is not an error: it has no devices.
  if (status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver) {
    cudaGetLastError();
    return {};
  }
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

std::string cuda_architectures() { return ELAPID_CUDA_ARCHITECTURES; }

bool runs_on(int major, int minor) {
  std::istringstream entries(cuda_architectures());
  for (std::string entry; entries >> entry;) {
    if (entry_runs_on(entry, major, minor)) return true;
  }
  return false;
}

CudaDevice checked_cuda_device(int index) {
  const std::vector<CudaDevice> devices = cuda_devices();
  require(!devices.empty(), "cuda: this machine must have a CUDA device and its driver, got none");
  require(index >= 0 && index < static_cast<int>(devices.size()), "cuda: the device must be 0 to ", devices.size() - 1,
          ", got ", index);
  const CudaDevice& device = devices[static_cast<size_t>(index)];
  require(runs_on(device.major, device.minor), "cuda: this build must have code for device ", index, ", ", device.name,
          " (compute capability ", device.major, ".", device.minor, "), got ", cuda_architectures());
  return device;
}

void use_cuda_device(int index) { select(index); }

DeviceMemory cuda_memory(int index) {
  select(index);
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return {static_cast<int64_t>(free), static_cast<int64_t>(total)};
}

void* allocate_on_device(int index, int64_t bytes) {
  select(index);
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, static_cast<size_t>(std::max<int64_t>(bytes, 1)));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    fail(concat("cuda: must fit into the memory of device ", index, ", got a need of ", bytes, " bytes where ",
                cuda_memory(index).free, " are free"));
  }
  check(status, "cudaMalloc");
  return memory;
}

void free_on_device(void* memory) noexcept { cudaFree(memory); }

void* allocate_pinned(int64_t bytes) {
  void* memory = nullptr;
  check(cudaMallocHost(&memory, static_cast<size_t>(std::max<int64_t>(bytes, 1))), "cudaMallocHost");
  return memory;
}

void free_pinned(void* memory) noexcept { cudaFreeHost(memory); }

void* reserve_addresses(int index, int64_t bytes) {
  select(index);
  check(cudaFree(nullptr), "cudaFree");  // the driver needs a context, which the runtime makes when it is first used
  CUdeviceptr at = 0;
  constexpr size_t kAlignment = size_t{2} << 20;
  if (VirtualMemory::functions().reserve(&at, static_cast<size_t>(bytes), kAlignment, 0, 0) != CUDA_SUCCESS) {
    return nullptr;
  }
  return reinterpret_cast<void*>(at);
}

void release_addresses(void* addresses, int64_t bytes) noexcept {
  VirtualMemory::functions().free(address_of(addresses), static_cast<size_t>(bytes));
}

bool map_memory(int index, void* at, int64_t bytes) {
  if (bytes == 0) return true;
  const VirtualMemory& memory = VirtualMemory::functions();
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location = {CU_MEM_LOCATION_TYPE_DEVICE, {index}};
  CUmemGenericAllocationHandle handle{};
  if (memory.create(&handle, static_cast<size_t>(bytes), &properties, 0) != CUDA_SUCCESS) return false;
  const bool mapped = memory.map(address_of(at), static_cast<size_t>(bytes), 0, handle, 0) == CUDA_SUCCESS;
  memory.release(handle);  // the mapping keeps it
  if (!mapped) return false;
  CUmemAccessDesc access{};
  access.location = properties.location;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  if (memory.set_access(address_of(at), static_cast<size_t>(bytes), &access, 1) == CUDA_SUCCESS) return true;
  unmap_memory(at, bytes);
  return false;
}

void unmap_memory(void* at, int64_t bytes) noexcept {
  VirtualMemory::functions().unmap(address_of(at), static_cast<size_t>(bytes));
}

void* create_stream(int index) {
  select(index);
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  return stream;
}

void destroy_stream(void* stream) noexcept { cudaStreamDestroy(as_stream(stream)); }

void copy_async(void* to, const void* from, int64_t bytes, void* stream) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, as_stream(stream)), "cudaMemcpyAsync");
}

void copy_rows_async(void* to, int64_t to_pitch, const void* from, int64_t from_pitch, int64_t bytes, int64_t rows,
                     void* stream) {
  if (bytes == 0 || rows == 0) return;
  check(cudaMemcpy2DAsync(to, static_cast<size_t>(to_pitch), from, static_cast<size_t>(from_pitch),
                          static_cast<size_t>(bytes), static_cast<size_t>(rows), cudaMemcpyDefault, as_stream(stream)),
        "cudaMemcpy2DAsync");
}

void fill_async(void* to, int byte, int64_t bytes, void* stream) {
  if (bytes == 0) return;
  check(cudaMemsetAsync(to, byte, static_cast<size_t>(bytes), as_stream(stream)), "cudaMemsetAsync");
}

void begin_capture(void* stream) {
  // Relaxed: mapping memory and reserving pinned memory are no work of the stream.
  check(cudaStreamBeginCapture(as_stream(stream), cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
}

void* end_capture(void* stream) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  check(cudaStreamEndCapture(as_stream(stream), &graph), "cudaStreamEndCapture");
  const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "cudaGraphInstantiate");
  return executable;
}

void abort_capture(void* stream) noexcept {
  cudaGraph_t graph = nullptr;
  if (cudaStreamEndCapture(as_stream(stream), &graph) == cudaSuccess && graph != nullptr) cudaGraphDestroy(graph);
  cudaGetLastError();
}

void launch_graph(void* graph, void* stream) {
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), as_stream(stream)), "cudaGraphLaunch");
}

void destroy_graph(void* graph) noexcept { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)); }

void synchronize(void* stream) { check(cudaStreamSynchronize(as_stream(stream)), "cudaStreamSynchronize"); }

}  // namespace elapid
