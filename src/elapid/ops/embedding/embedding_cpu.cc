#include "elapid/cpu/simd.h"
#include "elapid/ops/embedding/embedding.h"

namespace elapid {
namespace {

template <class T>
void gather(Cpu cpu, const EmbeddingForward& a) {
  const int64_t columns = a.y.cols();
  const int32_t* tokens = a.tokens.ptr<int32_t>();
  parallel_for(cpu.threads, a.y.rows(), 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      // Mapped files promise no alignment.
      const char* row = static_cast<const char*>(a.table.data) + tokens[t] * columns * int64_t{sizeof(T)};
      float* y = a.y.row<float>(t);
      for (int64_t c = 0; c < columns; ++c) {
        T value;
        std::memcpy(&value, row + c * int64_t{sizeof(T)}, sizeof(T));
        y[c] = a.scale * to_float(value);
      }
    }
  });
}

}  // namespace

void run(Cpu cpu, const EmbeddingForward& a) {
  switch (a.table.dtype) {
    case DType::f32: return gather<float>(cpu, a);
    case DType::bf16: return gather<BFloat16>(cpu, a);
    default: return gather<Float16>(cpu, a);
  }
}

}  // namespace elapid
