#include "elapid/ops/matmul/float_tiles_cpu.h"
#include "elapid/ops/matmul/grouped_matmul.h"

namespace elapid {
namespace {

// x as it is, or rounded to bf16 where there is room for it.
Tensor operand(Cpu cpu, const Tensor& x, const Tensor& room) {
  return room ? rounded_floats(cpu, x, x.cols(), room) : x;
}

template <class T>
void multiply(Cpu cpu, const MatmulForward& a) {
  const Cut cut = cut_of<T>(a.x.rows(), a.x.cols(), a.y.cols());
  parallel_for(cpu.threads, cut.tasks(), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) task<T>(a, cut, i);
  });
}

template <class T>
void multiply(Cpu cpu, const GroupedMatmulForward& a) {
  const int64_t in = a.x.cols(), out = a.y.cols();
  const int64_t* offsets = a.offsets.ptr<int64_t>();
  for_grouped_tasks(
      cpu.threads, a, [&](int64_t rows) { return cut_of<T>(rows, in, out); },
      [&](int64_t g, const Cut& cut, int64_t i) {
        const MatmulForward group{.x = a.x.slice(offsets[g], offsets[g + 1]),
                                  .weight = a.weights[g].value,
                                  .y = a.y.slice(offsets[g], offsets[g + 1]),
                                  .alpha = 1};
        task<T>(group, cut, i);
      });
}

template <class Args>
void by_dtype(Cpu cpu, DType weights, const Args& a) {
  switch (weights) {
    case DType::f32: return multiply<float>(cpu, a);
    case DType::bf16: return multiply<BFloat16>(cpu, a);
    default: return multiply<Float16>(cpu, a);
  }
}

}  // namespace

void run(Cpu cpu, const MatmulForward& a) {
  MatmulForward b = a;
  b.x = operand(cpu, a.x, a.rounded);
  by_dtype(cpu, a.weight.dtype, b);
}

void run(Cpu cpu, const GroupedMatmulForward& a) {
  GroupedMatmulForward b = a;
  b.x = operand(cpu, a.x, a.rounded);
  by_dtype(cpu, a.weights[0].value.dtype, b);
}

}  // namespace elapid
