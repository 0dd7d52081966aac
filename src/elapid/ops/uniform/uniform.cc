#include "elapid/ops/uniform/uniform.h"

namespace elapid {

void fill_uniform(ThreadPool& threads, const Uniform& uniform) {
  const Tensor& y = uniform.y;
  require(y.dense() && (y.dtype == DType::f32 || y.dtype == DType::bf16 || y.dtype == DType::f16),
          "fill_uniform: y must be dense in f32, bf16 or f16, got ", name_of(y.dtype));
  launch_on_cpu(threads, uniform);
}

}  // namespace elapid
