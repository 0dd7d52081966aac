#pragma once

// Backends and the one place where a kernel's backend is chosen.
//
// A backend is a tag that carries its execution resource; a kernel is an overload run(Backend, const Args&) on a plain
// struct of arguments. ELAPID_KERNEL declares one for every CPU level; a forgotten kernel is a link error. Kernels that
// have a form for AMX tiles, or exist on CUDA, add ELAPID_AMX_KERNEL or ELAPID_CUDA_KERNEL; launch() takes those when
// they are declared, and at AMX level otherwise the AVX-512 form.

#include "elapid/core/context.h"
#include "elapid/core/error.h"
#include "elapid/core/isa.h"
#include "elapid/core/trace.h"

namespace elapid {

struct Baseline {
  ThreadPool& threads;
};
struct Avx2 {
  ThreadPool& threads;
};
struct Avx512 {
  ThreadPool& threads;
};
struct Amx {
  ThreadPool& threads;
};
struct Cuda {
  void* stream;
};

#define ELAPID_KERNEL(Args)        \
  void run(Baseline, const Args&); \
  void run(Avx2, const Args&);     \
  void run(Avx512, const Args&);
#define ELAPID_AMX_KERNEL(Args) void run(Amx, const Args&);
#define ELAPID_CUDA_KERNEL(Args) void run(Cuda, const Args&);

// On host memory, whatever the device of a Context.
template <class Args>
void dispatch_on_cpu(ThreadPool& threads, const Args& args) {
  switch (active_isa()) {
    case Isa::baseline: return run(Baseline{threads}, args);
    case Isa::avx2: return run(Avx2{threads}, args);
    case Isa::avx512: return run(Avx512{threads}, args);
    case Isa::amx:
      if constexpr (requires(Amx amx) { run(amx, args); }) {
        return run(Amx{threads}, args);
      } else {
        return run(Avx512{threads}, args);
      }
  }
}

template <class Args>
void dispatch(const Context& ctx, const Args& args) {
  if (ctx.device.type == DeviceType::cuda) {
    if constexpr (kWithCuda && requires(Cuda gpu) { run(gpu, args); }) {
      return run(Cuda{ctx.stream}, args);
    } else {
      fail(concat("launch: the device must have a kernel for every operator, got ", kernel_name(typeid(Args)),
                  ", which is not built for cuda"));
    }
  }
  dispatch_on_cpu(ctx.threads, args);
}

// Times `launched` where kernels are traced.
template <class Args, class Launch>
void traced(const Launch& launched) {
  if (!tracing()) [[likely]]
    return launched();
  const auto start = std::chrono::steady_clock::now();
  launched();
  trace_launch(typeid(Args), std::chrono::steady_clock::now() - start);
}

template <class Args>
void launch(const Context& ctx, const Args& args) {
  require(ctx.tape == nullptr, "launch: operators must have a backward kernel to run under a tape, got one without");
  traced<Args>([&] {
    dispatch(ctx, args);
    if constexpr (kWithCuda) {
      if (tracing() && on_cuda(ctx.device)) synchronize(ctx.stream);  // the time of the kernel, not of its launch
    }
  });
}

// For kernels that prepare what models are made of, before there is a Context.
template <class Args>
void launch_on_cpu(ThreadPool& threads, const Args& args) {
  traced<Args>([&] { dispatch_on_cpu(threads, args); });
}

}  // namespace elapid
