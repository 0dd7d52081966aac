#pragma once

// Where and how to run: device, threads, arena. Passed explicitly to everything that computes; there is no global one.

#include "elapid/core/arena.h"
#include "elapid/core/device.h"
#include "elapid/core/host_room.h"
#include "elapid/core/thread_pool.h"

#include <cstring>

namespace elapid {

class Tape;  // records backward kernels; training brings it

struct Context {
  Device device;
  ThreadPool& threads;
  Arena& arena;                    // activations and scratch, in the device's memory
  Tape* tape = nullptr;            // present when gradients are wanted
  void* stream = nullptr;          // CUDA's: where kernels and copies go
  HostRoom* host_room = nullptr;   // on CUDA: for tables that the host computes
  DType activations = DType::f32;  // what operators write: f32, or on CUDA bf16
};

// Whether operators take activations of this type: f32 everywhere, bf16 on CUDA.
inline bool takes_activations(const Context& ctx, DType dtype) {
  return dtype == DType::f32 || (dtype == DType::bf16 && on_cuda(ctx.device));
}

// Tables that operators compute on the host: write the elements of host_table(), then give kernels what upload() makes
// of it. On the CPU both are one tensor in the arena. On CUDA the table lies in ctx.host_room until that is reset, and
// upload() puts a copy into the arena, in order with the kernels; a captured graph copies the table again each time.
inline Tensor host_table(const Context& ctx, Shape shape, DType dtype) {
  if constexpr (kWithCuda) {
    if (on_cuda(ctx.device)) return ctx.host_room->alloc(shape, dtype);
  }
  return ctx.arena.alloc(shape, dtype);
}
inline Tensor upload(const Context& ctx, const Tensor& table) {
  if constexpr (kWithCuda) {
    if (on_cuda(ctx.device) && table) {
      const Tensor copy = ctx.arena.alloc(table.shape, table.dtype);
      copy_async(copy.data, table.data, table.bytes(), ctx.stream);
      return copy;
    }
  }
  return table;
}
// The same for a dense tensor in any host memory, which may change once this returns.
inline Tensor upload_values(const Context& ctx, const Tensor& values) {
  if constexpr (kWithCuda) {
    if (on_cuda(ctx.device) && values) {
      const Tensor table = ctx.host_room->alloc(values.shape, values.dtype);
      std::memcpy(table.data, values.data, static_cast<size_t>(values.bytes()));
      return upload(ctx, table);
    }
  }
  return values;
}

}  // namespace elapid
