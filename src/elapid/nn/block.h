#pragma once

// Block: a norm and the bodies that read it and add into the residual stream.

#include "elapid/nn/mamba2.h"
#include "elapid/nn/mlp.h"
#include "elapid/nn/moe.h"

#include <variant>
#include <vector>

namespace elapid {

using BodyConfig = std::variant<Mamba2Config, MlpConfig, MoeConfig>;
using Body = std::variant<Mamba2, Mlp, Moe>;

struct BlockConfig {
  std::vector<BodyConfig> bodies;
};

class Block {
 public:
  Block(const BlockConfig& config, int64_t d_model, float norm_eps, int64_t layer, StateSpec& spec);

  // x [T, d_model] f32, the residual stream, updated in place.
  void forward(Context& ctx, const Tensor& x, const Pass& pass) const;

  void visit(const std::string& prefix, const ParameterVisitor& f);

 private:
  int64_t d_model_;
  float norm_eps_;
  Param norm_;
  std::vector<Body> bodies_;
};

}  // namespace elapid
