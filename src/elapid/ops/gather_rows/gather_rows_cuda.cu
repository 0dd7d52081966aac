#include "elapid/cuda/elements.cuh"
#include "elapid/ops/gather_rows/gather_rows.h"

namespace elapid {
namespace {

template <class T>
struct Gather {
  cuda::Rows<const T> x;
  const int64_t* rows;
  cuda::Rows<T> y;

  template <int N>
  __device__ void run(int64_t row, int64_t column) const {
    float values[N];
    cuda::load_run(x.at(rows[row], column), values);
    cuda::store_run(y.at(row, column), values);
  }
};

}  // namespace

void run(Cuda gpu, const GatherRowsForward& a) {
  const bool aligned = cuda::rows_aligned(a.x) && cuda::rows_aligned(a.y);
  cuda::with_type(a.x.dtype, [&]<class T>() {
    cuda::for_elements(gpu, a.y.rows(), a.y.cols(), aligned, Gather<T>{a.x, cuda::data_of<const int64_t>(a.rows), a.y},
                       "gather_rows");
  });
}

}  // namespace elapid
