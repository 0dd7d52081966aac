#pragma once

// The norm in front of a block and of the head.

#include "elapid/nn/parameter.h"
#include "elapid/ops/layer_norm/layer_norm.h"
#include "elapid/ops/rms_norm/rms_norm.h"

namespace elapid {

enum class NormKind : uint8_t { rms, layer };

struct NormConfig {
  NormKind kind = NormKind::rms;
  float eps = 1e-5f;
};

class Norm {
 public:
  Norm(const NormConfig& config, int64_t width) : config_(config), width_(width) {}

  // x [T, width] → [T, width].
  Tensor operator()(Context& ctx, const Tensor& x) const {
    return config_.kind == NormKind::layer ? layer_norm(ctx, x, weight_, bias_, config_.eps)
                                           : rms_norm(ctx, x, weight_, config_.eps);
  }

  void visit(const std::string& prefix, const ParameterVisitor& f) {
    f({prefix + "weight", &weight_, {width_}, Role::vector});
    if (config_.kind == NormKind::layer) f({prefix + "bias", &bias_, {width_}, Role::vector});
  }

 private:
  NormConfig config_;
  int64_t width_;
  Param weight_, bias_;
};

}  // namespace elapid
