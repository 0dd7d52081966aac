#pragma once

// ParameterInfo: what a body says of each of its parameters, once; visited by load, random initialization, counting and
// naming (later: save, quantize, optimizer, LoRA, Python).

#include "elapid/core/param.h"

#include <functional>
#include <string>
#include <string_view>

namespace elapid {

// What a parameter is, hence how its memory form follows from the checkpoint's.
enum class Role : uint8_t {
  table,      // embedding rows, used as stored
  matrix,     // [out, in] for matmul: packed, of the element type that the model is loaded in
  router,     // a matrix whose products stay float32: a score's rounding may choose another expert
  vector,     // float32, whatever the checkpoint stores
  conv_taps,  // checkpoint [channels, 1, K] → float32 [K, channels]
  decay,      // checkpoint A_log → float32 A = −exp(A_log)
};

struct ParameterInfo {
  std::string name;  // ours, dotted: "blocks.0.mamba2.in_proj.weight"
  Param* param;
  Shape shape;  // in the checkpoint
  Role role;
  double use = 1;  // share of tokens that multiply with it
};

using ParameterVisitor = std::function<void(const ParameterInfo&)>;

}  // namespace elapid
