#pragma once

// Where tensors live and kernels run. kWithCuda tells whether this build has the CUDA half at all; code that needs it
// is guarded by `if constexpr`, so a CPU build neither references nor stubs it.

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace elapid {

enum class DeviceType : uint8_t { cpu, cuda };

struct Device {
  DeviceType type = DeviceType::cpu;
  int index = 0;

  bool operator==(const Device& other) const = default;
};

#ifdef ELAPID_WITH_CUDA
inline constexpr bool kWithCuda = true;
#else
inline constexpr bool kWithCuda = false;
#endif

// Whether memory and kernels of this device are CUDA's; a constant false in builds without it.
constexpr bool on_cuda(Device device) { return kWithCuda && device.type == DeviceType::cuda; }

struct CudaDevice {
  int index;
  std::string name;
  int major, minor;  // compute capability
  int64_t bytes;     // of memory
};

// The rest is defined in builds with CUDA only: call it under `if constexpr (kWithCuda)`. Failures of CUDA are Errors.

// What this machine has; empty without a driver.
std::vector<CudaDevice> cuda_devices();
// What kernels were compiled for, as CMake writes it: "80-real 90a-real 80-virtual".
std::string cuda_architectures();
// Whether one of those runs on the compute capability `major`.`minor`.
bool runs_on(int major, int minor);
// An Error of one line when there is no such device, or no code for it in this build. Returns what it is.
CudaDevice checked_cuda_device(int index);
// Makes `index` the device that this thread's CUDA calls mean.
void use_cuda_device(int index);
struct DeviceMemory {
  int64_t free, total;  // bytes
};
DeviceMemory cuda_memory(int index);

// Memory of a device, undefined contents, 256-byte aligned; an Error when it has not that much. `bytes` ≥ 0.
void* allocate_on_device(int index, int64_t bytes);
void free_on_device(void* memory) noexcept;
// Host memory that the device copies from and to while the host goes on.
void* allocate_pinned(int64_t bytes);
void free_pinned(void* memory) noexcept;

// Addresses of a device without memory behind them, `bytes` a multiple of 2 MiB; null when there is no such range.
void* reserve_addresses(int index, int64_t bytes);
void release_addresses(void* addresses, int64_t bytes) noexcept;
// Puts memory, of undefined contents, behind a part of them, multiples of 2 MiB; false when the device has not that
// much. A part is unmapped as it was mapped.
bool map_memory(int index, void* at, int64_t bytes);
void unmap_memory(void* at, int64_t bytes) noexcept;

// Work on a device is ordered by the stream that it is put in, and done when synchronize() returns. Addresses of host
// and device memory differ, so one function copies in all directions. From pageable host memory, the bytes were read
// when it returns; pinned memory must keep them until the copy is done.
void* create_stream(int index);
void destroy_stream(void* stream) noexcept;
void copy_async(void* to, const void* from, int64_t bytes, void* stream);
// `rows` rows of `bytes` each, `to_pitch` and `from_pitch` bytes apart.
void copy_rows_async(void* to, int64_t to_pitch, const void* from, int64_t from_pitch, int64_t bytes, int64_t rows,
                     void* stream);
void fill_async(void* to, int byte, int64_t bytes, void* stream);
void synchronize(void* stream);

// Captures what is put in a stream from begin_capture() to end_capture(), none of which runs, as a graph to run again
// and again. abort_capture() forgets it.
void begin_capture(void* stream);
void* end_capture(void* stream);
void abort_capture(void* stream) noexcept;
void launch_graph(void* graph, void* stream);
void destroy_graph(void* graph) noexcept;

// Copies within the memory of a device, in order with its stream; on the CPU at once.
inline void copy_between(Device device, void* stream, void* to, const void* from, int64_t bytes) {
  if constexpr (kWithCuda) {
    if (on_cuda(device)) return copy_async(to, from, bytes, stream);
  }
  if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
}

// Owns the queue of work for one device; holds nothing for the CPU.
class Stream {
 public:
  Stream() = default;
  explicit Stream(Device device) {
    if constexpr (kWithCuda) {
      if (on_cuda(device)) handle_ = create_stream(device.index);
    }
  }
  ~Stream() {
    if constexpr (kWithCuda) {
      if (handle_ != nullptr) destroy_stream(handle_);
    }
  }
  Stream(Stream&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Stream& operator=(Stream&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }

  // CUDA's cudaStream_t.
  [[nodiscard]] void* handle() const { return handle_; }

 private:
  void* handle_ = nullptr;
};

// Owns a captured graph, or nothing.
class Graph {
 public:
  Graph() = default;
  explicit Graph(void* handle) : handle_(handle) {}
  ~Graph() {
    if constexpr (kWithCuda) {
      if (handle_ != nullptr) destroy_graph(handle_);
    }
  }
  Graph(Graph&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Graph& operator=(Graph&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }

  explicit operator bool() const { return handle_ != nullptr; }
  [[nodiscard]] void* handle() const { return handle_; }

 private:
  void* handle_ = nullptr;
};

}  // namespace elapid
