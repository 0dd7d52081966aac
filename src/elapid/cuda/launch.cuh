#pragma once

// What kernels share: launching, elements of either type of activation, 16-byte packs, sums over a warp or a block,
// formulas. For *.cu files.

#include "elapid/core/error.h"
#include "elapid/core/kernel.h"

#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <utility>

namespace elapid::cuda {

using bf16 = __nv_bfloat16;

inline void check(cudaError_t status, const char* what, SourceLocation where = SourceLocation::current()) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // else the next launch would report this one
  throw Error(concat("cuda: ", what, " must succeed, got ", cudaGetErrorString(status)), where);
}
// After each launch: what was wrong with its configuration.
inline void check_launch(const char* kernel, SourceLocation where = SourceLocation::current()) {
  check(cudaGetLastError(), kernel, where);
}

inline cudaStream_t stream_of(Cuda gpu) { return static_cast<cudaStream_t>(gpu.stream); }

template <class T>
__host__ __device__ constexpr T ceil_div(T n, T by) {
  return (n + by - 1) / by;
}

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

// Calls f.template operator()<T>() with the element type of `dtype`, float or bf16.
template <class F>
void with_type(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f32: return f.template operator()<float>();
    case DType::bf16: return f.template operator()<bf16>();
    default: fail(concat("cuda: elements must be f32 or bf16, got ", name_of(dtype)));
  }
}

// Calls f.template operator()<value>() for the one of `Allowed` that `value` is; false when it is none of them.
template <int... Allowed, class F>
bool with_constant(int64_t value, const F& f) {
  return ((value == Allowed ? (f.template operator()<Allowed>(), true) : false) || ...);
}

template <class T>
T* data_of(const Tensor& t) {
  return static_cast<T*>(t.data);
}

// Whether every row of `t` begins at a multiple of 16 bytes. Absent tensors do.
inline bool rows_aligned(const Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 &&
         (t.rows() <= 1 || t.row_stride() * size_of(t.dtype) % 16 == 0);
}

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __bfloat162float(x); }
template <class T>
__device__ T from_float(float x) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return x;
  } else {
    return __float2bfloat16_rn(x);
  }
}

// Sixteen bytes of elements, read and written as one.
template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / static_cast<int>(sizeof(T));
  T at[kSize];
};
// What is read once should not push out of the cache what is read again.
template <class T>
__device__ Pack<T> load_streamed(const T* p) {
  const uint4 bits = __ldcs(reinterpret_cast<const uint4*>(p));
  Pack<T> pack;
  *reinterpret_cast<uint4*>(&pack) = bits;
  return pack;
}
template <class T>
__device__ Pack<T> load_pack(const T* p) {
  Pack<T> pack;
  *reinterpret_cast<uint4*>(&pack) = *reinterpret_cast<const uint4*>(p);
  return pack;
}
template <class T>
__device__ void store_pack(T* p, const Pack<T>& pack) {
  *reinterpret_cast<uint4*>(p) = *reinterpret_cast<const uint4*>(&pack);
}
// N floats from N elements of either type, N a multiple of what 16 bytes hold (or fewer bytes: N elements at once).
template <int N, class T>
__device__ void load_floats(const T* p, float (&to)[N]) {
  if constexpr (N % Pack<T>::kSize == 0) {
#pragma unroll
    for (int i = 0; i < N; i += Pack<T>::kSize) {
      const Pack<T> pack = load_pack(p + i);
#pragma unroll
      for (int j = 0; j < Pack<T>::kSize; ++j) to[i + j] = to_float(pack.at[j]);
    }
  } else {
    static_assert(N == 4 && sizeof(T) == 2, "N must fill packs, or half a pack of bf16");
    const uint2 bits = *reinterpret_cast<const uint2*>(p);
    T parts[4];
    *reinterpret_cast<uint2*>(parts) = bits;
#pragma unroll
    for (int j = 0; j < 4; ++j) to[j] = to_float(parts[j]);
  }
}
template <int N, class T>
__device__ void store_floats(T* p, const float (&from)[N]) {
  if constexpr (N % Pack<T>::kSize == 0) {
#pragma unroll
    for (int i = 0; i < N; i += Pack<T>::kSize) {
      Pack<T> pack;
#pragma unroll
      for (int j = 0; j < Pack<T>::kSize; ++j) pack.at[j] = from_float<T>(from[i + j]);
      store_pack(p + i, pack);
    }
  } else {
    static_assert(N == 4 && sizeof(T) == 2, "N must fill packs, or half a pack of bf16");
    alignas(8) T parts[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) parts[j] = from_float<T>(from[j]);
    *reinterpret_cast<uint2*>(p) = *reinterpret_cast<const uint2*>(parts);
  }
}

// Over all 32 lanes; each gets the result. The order of additions is fixed.
__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(kAllLanes, x, lane);
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, lane));
  return x;
}
// Over a one-dimensional block of whole warps; each thread gets the result. Synchronizes the block.
template <class Reduce>
__device__ float block_reduce(float x, float neutral, const Reduce& reduce) {
  __shared__ float parts[32];
  x = reduce(x);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  __syncthreads();  // an earlier call's parts were read
  if (lane == 0) parts[warp] = x;
  __syncthreads();
  return reduce(lane < blockDim.x / kWarp ? parts[lane] : neutral);
}
__device__ inline float block_sum(float x) {
  return block_reduce(x, 0, [](float v) { return warp_sum(v); });
}
__device__ inline float block_max(float x) {
  return block_reduce(x, -__builtin_inff(), [](float v) { return warp_max(v); });
}

// Formulas of ops/math.h in float32, with CUDA's accurate functions.
__device__ inline float silu(float x) { return x / (1 + expf(-x)); }
__device__ inline float softplus(float x) { return fmaxf(x, 0) + log1pf(expf(-fabsf(x))); }

}  // namespace elapid::cuda
