#include "elapid/cuda/elements.cuh"
#include "elapid/ops/embedding/embedding.h"

#include <cuda_fp16.h>

namespace elapid {
namespace {

// Rows of a table may begin anywhere: single elements, which a warp reads side by side.
template <class T>
struct Lookup {
  const int32_t* tokens;
  cuda::Rows<const T> table;
  cuda::Rows<float> y;
  float scale;

  template <int N>
  __device__ void run(int64_t row, int64_t column) const {
    const T* from = table.at(tokens[row], column);
    for (int i = 0; i < N; ++i) {
      float value = 0;
      if constexpr (std::is_same_v<T, __half>) {
        value = __half2float(from[i]);
      } else {
        value = cuda::to_float(from[i]);
      }
      y.at(row, column)[i] = scale * value;
    }
  }
};

}  // namespace

void run(Cuda gpu, const EmbeddingForward& a) {
  const auto lookup = [&]<class T>() {
    cuda::for_elements(gpu, a.y.rows(), a.y.cols(), false,
                       Lookup<T>{cuda::data_of<const int32_t>(a.tokens), a.table, a.y, a.scale}, "embedding");
  };
  if (a.table.dtype == DType::f16) return lookup.operator()<__half>();
  cuda::with_type(a.table.dtype, lookup);
}

}  // namespace elapid
