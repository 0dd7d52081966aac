#pragma once

// Where and how to run: device, threads, arena. Passed explicitly to everything that computes; there is no global one.

#include "elapid/core/arena.h"
#include "elapid/core/device.h"
#include "elapid/core/thread_pool.h"

namespace elapid {

class Tape;  // records backward kernels; training brings it

struct Context {
  Device device;
  ThreadPool& threads;
  Arena& arena;          // activations and scratch
  Tape* tape = nullptr;  // present when gradients are wanted
};

}  // namespace elapid
