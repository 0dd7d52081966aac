#include "elapid/cuda/row_reduce.cuh"
#include "elapid/ops/cross_entropy/cross_entropy.h"

namespace elapid {
namespace {

__global__ void cross_entropy(cuda::Rows<const float> logits, const int64_t* labels, float* nll, int64_t vocab) {
  const int64_t r = blockIdx.x, label = labels[r];
  if (label == kIgnoreLabel) {
    if (threadIdx.x == 0) nll[r] = 0;
    return;
  }
  const float* row = logits.at(r, 0);
  float top = -__builtin_inff(), total = 0;
  for (int64_t v = threadIdx.x; v < vocab; v += blockDim.x) top = fmaxf(top, row[v]);
  top = cuda::block_max(top);
  for (int64_t v = threadIdx.x; v < vocab; v += blockDim.x) total += expf(row[v] - top);
  total = cuda::block_sum(total);
  if (threadIdx.x == 0) nll[r] = logf(total) + (top - row[label]);
}

}  // namespace

void run(Cuda gpu, const CrossEntropyForward& a) {
  if (a.logits.rows() == 0) return;
  const int64_t vocab = a.logits.cols();
  cross_entropy<<<static_cast<unsigned>(a.logits.rows()), cuda::row_threads(vocab, 1), 0, cuda::stream_of(gpu)>>>(
      a.logits, cuda::data_of<const int64_t>(a.labels), cuda::data_of<float>(a.nll), vocab);
  cuda::check_launch("cross_entropy");
}

}  // namespace elapid
