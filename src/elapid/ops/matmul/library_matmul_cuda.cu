#include "elapid/cuda/launch.cuh"
#include "elapid/ops/matmul/matmul_cuda.h"

#include <cublasLt.h>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <tuple>

// Row-major matrices are column-major ones transposed: cublasLt computes yᵀ = W xᵀ, with Wᵀ [in, out], xᵀ [in, rows]
// and yᵀ [out, rows] as it sees them.

namespace elapid {
namespace {

void check(cublasStatus_t status, const char* call) {
  require(status == CUBLAS_STATUS_SUCCESS, "cublasLt: ", call, " must succeed, got ", cublasLtGetStatusString(status));
}

cudaDataType_t type_of(DType dtype) { return dtype == DType::f32 ? CUDA_R_32F : CUDA_R_16BF; }

struct Layout {
  cublasLtMatrixLayout_t handle = nullptr;
  Layout(DType dtype, int64_t rows, int64_t columns, int64_t stride) {
    check(cublasLtMatrixLayoutCreate(&handle, type_of(dtype), static_cast<uint64_t>(rows),
                                     static_cast<uint64_t>(columns), stride),
          "cublasLtMatrixLayoutCreate");
  }
  ~Layout() { cublasLtMatrixLayoutDestroy(handle); }
  Layout(const Layout&) = delete;
  Layout& operator=(const Layout&) = delete;
};

struct Product {
  cublasLtMatmulDesc_t handle = nullptr;
  Product() {
    check(cublasLtMatmulDescCreate(&handle, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
    const cublasOperation_t transposed = CUBLAS_OP_T;
    check(cublasLtMatmulDescSetAttribute(handle, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed),
          "cublasLtMatmulDescSetAttribute");
  }
  ~Product() { cublasLtMatmulDescDestroy(handle); }
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;
};

struct Preference {
  cublasLtMatmulPreference_t handle = nullptr;
  Preference() { check(cublasLtMatmulPreferenceCreate(&handle), "cublasLtMatmulPreferenceCreate"); }
  ~Preference() { cublasLtMatmulPreferenceDestroy(handle); }
  Preference(const Preference&) = delete;
  Preference& operator=(const Preference&) = delete;
  template <class T>
  void set(cublasLtMatmulPreferenceAttributes_t attribute, const T& value) const {
    check(cublasLtMatmulPreferenceSetAttribute(handle, attribute, &value, sizeof value),
          "cublasLtMatmulPreferenceSetAttribute");
  }
};

// The largest power of two, up to 256, that divides an address.
uint32_t alignment_of(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  uint32_t alignment = 256;
  while (address % alignment != 0) alignment /= 2;
  return alignment;
}

// What the choice of an algorithm depends on.
struct Key {
  int device;
  int64_t rows, in, out, x_stride, w_stride, y_stride, add_stride, workspace;
  DType y;
  bool adds;
  uint32_t x_alignment, w_alignment, y_alignment, add_alignment;

  auto operator<=>(const Key&) const = default;
};

// Of one shape. Made when it is first seen, from what the library says of shapes alone; nothing is timed.
struct Plan {
  Product product;
  Layout w, x, add, y;
  std::optional<cublasLtMatmulAlgo_t> algorithm;

  Plan(cublasLtHandle_t library, const Key& k)
      : w(DType::bf16, k.in, k.out, k.w_stride),
        x(DType::bf16, k.in, k.rows, k.x_stride),
        add(k.y, k.out, k.rows, k.adds ? k.add_stride : k.y_stride),
        y(k.y, k.out, k.rows, k.y_stride) {
    const Preference wanted;
    wanted.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(k.workspace));
    wanted.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, k.w_alignment);
    wanted.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, k.x_alignment);
    wanted.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, k.adds ? k.add_alignment : k.y_alignment);
    wanted.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, k.y_alignment);
    // Parts of a sum stay float32.
    wanted.set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
               static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    cublasLtMatmulHeuristicResult_t found{};
    int count = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        library, product.handle, w.handle, x.handle, add.handle, y.handle, wanted.handle, 1, &found, &count);
    if (status == CUBLAS_STATUS_SUCCESS && count > 0) algorithm = found.algo;
  }
};

// The library's state on each device, and plans of all shapes seen; what they hold depends on shapes alone.
struct Library {
  std::mutex mutex;
  std::map<int, cublasLtHandle_t> handles;
  std::map<Key, std::unique_ptr<const Plan>> plans;

  std::pair<cublasLtHandle_t, const Plan*> find(const Key& key) {
    const std::lock_guard lock(mutex);
    cublasLtHandle_t& handle = handles[key.device];
    if (handle == nullptr) check(cublasLtCreate(&handle), "cublasLtCreate");
    std::unique_ptr<const Plan>& plan = plans[key];
    if (!plan) plan = std::make_unique<const Plan>(handle, key);
    return {handle, plan.get()};
  }
};

Library& library() {
  static Library& only = *new Library;  // never destroyed: the driver may be gone before
  return only;
}

}  // namespace

bool library_matmul(Cuda gpu, const MatmulForward& a) {
  Key key{};
  cuda::check(cudaGetDevice(&key.device), "cudaGetDevice");
  key.rows = a.x.rows();
  key.in = a.x.cols();
  key.out = a.weight.shape[0];
  key.x_stride = a.x.row_stride();
  key.w_stride = a.weight.row_stride();
  key.y_stride = a.y.row_stride();
  key.workspace = a.workspace.bytes();
  key.y = a.y.dtype;
  key.adds = static_cast<bool>(a.add);
  key.x_alignment = alignment_of(a.x.data);
  key.w_alignment = alignment_of(a.weight.data);
  key.y_alignment = alignment_of(a.y.data);
  if (key.adds) {
    key.add_stride = a.add.row_stride();
    key.add_alignment = alignment_of(a.add.data);
  }
  const auto [handle, plan] = library().find(key);
  if (!plan->algorithm) return false;
  const float beta = key.adds ? 1 : 0;
  check(cublasLtMatmul(handle, plan->product.handle, &a.alpha, a.weight.data, plan->w.handle, a.x.data, plan->x.handle,
                       &beta, key.adds ? a.add.data : a.y.data, plan->add.handle, a.y.data, plan->y.handle,
                       &*plan->algorithm, a.workspace.data, static_cast<size_t>(key.workspace), cuda::stream_of(gpu)),
        "cublasLtMatmul");
  return true;
}

}  // namespace elapid
