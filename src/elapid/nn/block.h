#pragma once

// Block: a norm and the bodies that read it. What they say goes into the residual stream, or into the side stream for a
// later block to read.

#include "elapid/nn/attention.h"
#include "elapid/nn/mamba1.h"
#include "elapid/nn/mamba2.h"
#include "elapid/nn/mlp.h"
#include "elapid/nn/moe.h"
#include "elapid/nn/norm.h"

#include <variant>
#include <vector>

namespace elapid {

using BodyConfig = std::variant<Mamba1Config, Mamba2Config, AttentionConfig, MlpConfig, MoeConfig>;
using Body = std::variant<Mamba1, Mamba2, Attention, Mlp, Moe>;

// A body in its place: multipliers that some families put around it.
struct BodyUse {
  template <class Config>
  BodyUse(Config config_, float in_scale_ = 1,
          float out_scale_ = 1)  // NOLINT: implicit, so a list of configs is a block
      : config(std::move(config_)), in_scale(in_scale_), out_scale(out_scale_) {}

  BodyConfig config;
  float in_scale, out_scale;  // of the normed input, of the result
};

// What runs through a model: [T, d_model] f32 each.
struct Streams {
  Tensor residual;   // what every layer adds to
  Tensor embedding;  // as the model began; present when a block reads it
  Tensor side;       // what blocks hand to later ones without adding it; present when a block writes it
};

struct BlockConfig {
  enum class Reads : uint8_t {
    residual,
    residual_beside_embedding,  // both, [T, 2 · d_model]: Zamba2's shared attention
    side,
    residual_plus_side,
  };
  enum class Writes : uint8_t { residual, side };

  std::vector<BodyUse> bodies;
  int64_t layer = 0;  // the checkpoint's layer that this block belongs to
  Reads reads = Reads::residual;
  Writes writes = Writes::residual;
};

class Block {
 public:
  // What all blocks of a model have in common.
  struct Common {
    int64_t d_model;
    NormConfig norm;
    float residual_scale;  // of everything that is added to the residual
  };
  Block(const BlockConfig& config, const Common& common, StateSpec& spec);

  // Updates the stream that this block writes, in place.
  void forward(Context& ctx, const Streams& streams, const Pass& pass) const;

  void visit(const std::string& prefix, const ParameterVisitor& f);
  [[nodiscard]] int64_t layer() const { return layer_; }

 private:
  struct Use {
    Body body;
    float in_scale, out_scale;
  };

  BlockConfig::Reads reads_;
  BlockConfig::Writes writes_;
  int64_t layer_;
  float residual_scale_;
  Norm norm_;
  std::vector<Use> bodies_;
};

}  // namespace elapid
