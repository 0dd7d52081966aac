#include "elapid/model/builder.h"
#include "elapid/model/checkpoint_rules.h"
#include "elapid/model/fingerprint.h"
#include "elapid/model/load.h"
#include "elapid/ops/uniform/uniform.h"

#include <cmath>

// Random weights: uniform with the variance that keeps activations near 1 through any number of layers. Values need not
// be a trained model's, but zeros, subnormals or infinities would make a benchmark lie.

namespace elapid {
namespace {

// Half-width of a uniform distribution of the given standard deviation.
float half_width(double deviation) { return static_cast<float>(deviation * std::sqrt(3.0)); }

struct Range {
  float low, high;
};

Range range_of(const ParameterInfo& info, int64_t layers) {
  switch (info.role) {
    case Role::table: return {-half_width(1), half_width(1)};
    case Role::matrix:
    case Role::router: {
      // Bodies add into the residual: together all layers add about as much variance as the embedding has.
      const bool adds = info.name.ends_with("out_proj.weight") || info.name.ends_with("down_proj.weight");
      const double share = adds ? 1 / std::sqrt(static_cast<double>(layers)) : 1;
      const float h = half_width(share / std::sqrt(static_cast<double>(info.shape[1])));
      return {-h, h};
    }
    case Role::conv_taps: return {-0.5f, 0.5f};
    case Role::decay: return {0, static_cast<float>(std::log(16.0))};  // A in −16 … −1, as Mamba-2 begins
    case Role::vector:
      if (info.name.ends_with("dt_bias")) return {-6.9f, -2.25f};  // time steps of 0.001 … 0.1
      if (info.name.ends_with(".bias")) return {-0.05f, 0.05f};
      return {0.9f, 1.1f};
  }
  return {0, 0};
}

}  // namespace

std::unique_ptr<Model> random_model(const ModelConfig& config, ThreadPool& threads, uint64_t seed,
                                    std::optional<Precision> precision, Device device) {
  const DType matrices = config.torch_dtype.value_or(DType::f32);
  ModelBuilder builder(config, threads, precision, device);
  Buffer memory;  // one parameter's at a time
  uint64_t stream = 0;
  builder.fill([&](const ParameterInfo& info, bool values) {
    const Range range = range_of(info, static_cast<int64_t>(config.blocks.size()));
    const bool is_matrix = info.role == Role::matrix || info.role == Role::router || info.role == Role::table;
    const DType dtype = is_matrix ? matrices : DType::f32;
    const int64_t size = info.shape.size();
    info.param->name = info.name;
    if (!values) return ModelBuilder::Source{{{as_matrix(Tensor(nullptr, dtype, info.shape)), nullptr}}};
    memory = Buffer();
    memory = Buffer(size * size_of(dtype));
    const Tensor t(memory.data(), dtype, info.shape);
    fill_uniform(threads, {seed, stream++, range.low, range.high, t});
    return ModelBuilder::Source{{{as_matrix(t), nullptr}}};
  });
  return builder.finish([config, seed] { return fingerprint_of(config, seed); });
}

}  // namespace elapid
