#include "elapid/cuda/elements.cuh"
#include "elapid/ops/moe/moe.h"

namespace elapid {
namespace {

using cuda::kAllLanes, cuda::kWarp, cuda::to_float;

constexpr int kThreads = 128;
constexpr float kInfinity = __builtin_inff();

// --- Choosing experts: a warp has a token --------------------------------------------------------------------------

// Keys as numbers that are larger for what is chosen earlier: NaN before everything, then by value, of equals the
// first.
__device__ uint64_t rank_of(float key, int index) {
  uint32_t bits = __float_as_uint(key == 0 ? 0.0f : key);  // both zeros are equal
  bits = key != key ? 0xffffffffu : (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return uint64_t{bits} << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}
__device__ int index_of(uint64_t rank) { return static_cast<int>(0xffffffffu - static_cast<uint32_t>(rank)); }
__device__ bool better(float a, float b) { return a > b || (a != a && b == b); }

__device__ uint64_t warp_largest(uint64_t x) {
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2) {
    const uint64_t other = __shfl_xor_sync(kAllLanes, x, lane);
    x = other > x ? other : x;
  }
  return x;
}

// The k best of n keys, in order: each the largest of those ranked below the one before.
__device__ void choose(const float* keys, int n, int k, int64_t* chosen) {
  const int lane = threadIdx.x % kWarp;
  uint64_t last = ~uint64_t{0};
  for (int i = 0; i < k; ++i) {
    uint64_t best = 0;
    for (int e = lane; e < n; e += kWarp) {
      const uint64_t rank = rank_of(keys[e], e);
      if (rank < last && rank > best) best = rank;
    }
    last = warp_largest(best);
    if (lane == 0) chosen[i] = index_of(last);
  }
  __syncwarp();
}

struct Route {
  const float *logits, *bias;
  int64_t logits_stride, tokens;
  int64_t* experts;
  float* weights;
  int count;  // of experts
  Router router;
};

__device__ void route_softmax(const Route& a, const float* logits, int64_t* chosen, float* weights) {
  const int lane = threadIdx.x % kWarp, k = static_cast<int>(a.router.top_k);
  choose(logits, a.count, k, chosen);
  const float top = logits[chosen[0]];
  const bool of_top = a.router.routing == Routing::softmax_of_top;
  float total = 0;
  if (of_top) {
    for (int i = lane; i < k; i += kWarp) total += expf(logits[chosen[i]] - top);
  } else {
    for (int e = lane; e < a.count; e += kWarp) total += expf(logits[e] - top);
  }
  total = cuda::warp_sum(total);
  for (int i = lane; i < k; i += kWarp) weights[i] = expf(logits[chosen[i]] - top) / total;
}

__device__ void route_sigmoid(const Route& a, const float* logits, float* keys, float* group_keys, int64_t* chosen,
                              float* weights) {
  const int lane = threadIdx.x % kWarp, groups = static_cast<int>(a.router.groups), width = a.count / groups;
  const auto score = [&](int64_t e) { return 1 / (1 + expf(-logits[e])); };
  for (int e = lane; e < a.count; e += kWarp) keys[e] = a.bias != nullptr ? score(e) + a.bias[e] : score(e);
  __syncwarp();
  if (groups > 1) {
    for (int g = lane; g < groups; g += kWarp) {
      float best = keys[g * width], second = -kInfinity;
      bool has_second = false;
      for (int e = g * width + 1; e < (g + 1) * width; ++e) {
        if (better(keys[e], best)) {
          second = best;
          best = keys[e];
        } else if (!has_second || better(keys[e], second)) {
          second = keys[e];
        }
        has_second = true;
      }
      group_keys[g] = best + second;
    }
    __syncwarp();
    for (int g = lane; g < groups; g += kWarp) {
      int ahead = 0;
      const uint64_t own = rank_of(group_keys[g], g);
      for (int other = 0; other < groups; ++other) ahead += rank_of(group_keys[other], other) > own;
      if (ahead < a.router.top_groups) continue;
      for (int e = g * width; e < (g + 1) * width; ++e) keys[e] = -kInfinity;
    }
    __syncwarp();
  }
  const int k = static_cast<int>(a.router.top_k);
  choose(keys, a.count, k, chosen);
  float total = 0;
  for (int i = lane; i < k; i += kWarp) total += score(chosen[i]);
  total = cuda::warp_sum(total) + 1e-20f;
  for (int i = lane; i < k; i += kWarp) {
    const float s = score(chosen[i]);
    weights[i] = __fmul_rn(a.router.normalize ? s / total : s, a.router.scale);
  }
}

__global__ void route_tokens(Route a) {
  extern __shared__ float shared[];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, groups = static_cast<int>(a.router.groups);
  const int64_t token = int64_t{blockIdx.x} * (blockDim.x / kWarp) + warp;
  if (token >= a.tokens) return;
  float* logits = shared + warp * (2 * a.count + groups);
  for (int e = lane; e < a.count; e += kWarp) logits[e] = a.logits[token * a.logits_stride + e];
  __syncwarp();
  int64_t* chosen = a.experts + token * a.router.top_k;
  float* weights = a.weights + token * a.router.top_k;
  if (a.router.routing == Routing::sigmoid_groups) {
    route_sigmoid(a, logits, logits + a.count, logits + 2 * a.count, chosen, weights);
  } else {
    route_softmax(a, logits, chosen, weights);
  }
}

// --- Sorting pairs by expert -----------------------------------------------------------------------------------------

// A counting sort: a warp counts the pairs of a chunk, the counts become first rows, and the warp ranks its pairs in
// order. Everything is integers in a fixed order, so that rows do not depend on which warp is first.
struct Group {
  const int64_t* experts;
  int64_t *offsets, *tokens, *rows;
  int32_t* counts;  // [chunks][experts], then totals
  int64_t pairs, top_k, chunks;
  int count;  // of experts
};

__device__ void zero_counts(int32_t* counts, int n) {
  for (int e = threadIdx.x; e < n; e += blockDim.x) counts[e] = 0;
}

__global__ void count_pairs(Group a) {
  extern __shared__ int32_t own[];
  zero_counts(own, a.count);
  __syncwarp();
  const int64_t first = int64_t{blockIdx.x} * kRouteChunk, last = min(first + kRouteChunk, a.pairs);
  for (int64_t p = first + threadIdx.x; p < last; p += kWarp) atomicAdd(&own[a.experts[p]], 1);
  __syncwarp();
  for (int e = threadIdx.x; e < a.count; e += kWarp) a.counts[blockIdx.x * int64_t{a.count} + e] = own[e];
}

__device__ int32_t scan_lanes(int32_t x) {
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int32_t other = __shfl_up_sync(kAllLanes, x, distance);
    if (static_cast<int>(threadIdx.x % kWarp) >= distance) x += other;
  }
  return x;
}

// Counts of an expert become the rows of it before each chunk; a warp has an expert.
__global__ void scan_chunks(Group a) {
  const int64_t expert = int64_t{blockIdx.x} * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  if (expert >= a.count) return;
  const int lane = threadIdx.x % kWarp;
  int32_t before = 0;
  for (int64_t first = 0; first < a.chunks; first += kWarp) {
    const int64_t chunk = first + lane;
    const int32_t own = chunk < a.chunks ? a.counts[chunk * a.count + expert] : 0;
    const int32_t sum = scan_lanes(own);
    if (chunk < a.chunks) a.counts[chunk * a.count + expert] = before + sum - own;
    before += __shfl_sync(kAllLanes, sum, kWarp - 1);
  }
  if (lane == 0) a.counts[a.chunks * a.count + expert] = before;
}

// Totals become the offsets; one warp.
__global__ void scan_experts(Group a) {
  const int lane = threadIdx.x;
  int64_t before = 0;
  for (int first = 0; first < a.count; first += kWarp) {
    const int e = first + lane;
    const int32_t own = e < a.count ? a.counts[a.chunks * a.count + e] : 0;
    const int32_t sum = scan_lanes(own);
    if (e < a.count) a.offsets[e] = before + sum - own;
    before += __shfl_sync(kAllLanes, sum, kWarp - 1);
  }
  if (lane == 0) a.offsets[a.count] = before;
}

__global__ void place_pairs(Group a) {
  extern __shared__ int32_t next[];
  const int lane = threadIdx.x;
  for (int e = lane; e < a.count; e += kWarp) {
    next[e] = a.counts[blockIdx.x * int64_t{a.count} + e] + static_cast<int32_t>(a.offsets[e]);
  }
  __syncwarp();
  const int64_t first = int64_t{blockIdx.x} * kRouteChunk, last = min(first + kRouteChunk, a.pairs);
  for (int64_t p0 = first; p0 < last; p0 += kWarp) {
    const int64_t p = p0 + lane;
    const int expert = p < last ? static_cast<int>(a.experts[p]) : -1;
    const unsigned same = __match_any_sync(kAllLanes, expert);
    const int ahead = __popc(same & ((1u << lane) - 1));
    const int32_t base = expert < 0 ? 0 : next[expert];
    __syncwarp();
    if (expert >= 0) {
      const int64_t row = int64_t{base} + ahead;
      a.tokens[row] = p / a.top_k;
      a.rows[p] = row;
      if (ahead == 0) next[expert] = base + __popc(same);
    }
    __syncwarp();
  }
}

// --- Adding up -------------------------------------------------------------------------------------------------------

template <class X, class Y>
struct Combine {
  cuda::Rows<const X> x;
  const float* weights;
  int64_t weights_stride;
  const int64_t* rows;
  int64_t top_k;
  cuda::Rows<const Y> add;
  cuda::Rows<Y> y;
  float alpha;

  template <int N>
  __device__ void run(int64_t t, int64_t column) const {
    float total[N] = {};
    for (int64_t k = 0; k < top_k; ++k) {
      const float weight = weights[t * weights_stride + k];
      float part[N];
      cuda::load_run(x.at(rows[t * top_k + k], column), part);
#pragma unroll
      for (int i = 0; i < N; ++i) total[i] = fmaf(weight, part[i], total[i]);
    }
    float added[N] = {};
    if (add.data != nullptr) cuda::load_run(add.at(t, column), added);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      total[i] = __fmul_rn(alpha, total[i]);
      if (add.data != nullptr) total[i] = __fadd_rn(total[i], added[i]);
    }
    cuda::store_run(y.at(t, column), total);
  }
};

void allow_shared(const void* kernel, int64_t bytes) {
  cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
              "cudaFuncSetAttribute");
}

}  // namespace

void run(Cuda gpu, const RouteForward& a) {
  const int64_t tokens = a.logits.rows(), experts = a.logits.cols();
  if (tokens == 0) return;
  const Route route{cuda::data_of<const float>(a.logits),
                    cuda::data_of<const float>(a.correction_bias),
                    a.logits.row_stride(),
                    tokens,
                    cuda::data_of<int64_t>(a.experts),
                    cuda::data_of<float>(a.weights),
                    static_cast<int>(experts),
                    a.router};
  const int64_t per_warp = (2 * experts + a.router.groups) * static_cast<int64_t>(sizeof(float));
  const int64_t warps = per_warp <= 8192 ? 4 : 1, bytes = warps * per_warp;
  allow_shared(reinterpret_cast<const void*>(&route_tokens), bytes);
  route_tokens<<<static_cast<unsigned>(cuda::ceil_div(tokens, warps)), static_cast<unsigned>(warps * kWarp),
                 static_cast<size_t>(bytes), cuda::stream_of(gpu)>>>(route);
  cuda::check_launch("route");
}

void run(Cuda gpu, const GroupRows& a) {
  const cudaStream_t stream = cuda::stream_of(gpu);
  const int64_t experts = a.offsets.size() - 1, chunks = a.counts.shape[0] - 1;
  const Group group{cuda::data_of<const int64_t>(a.experts),
                    cuda::data_of<int64_t>(a.offsets),
                    cuda::data_of<int64_t>(a.tokens),
                    cuda::data_of<int64_t>(a.rows),
                    cuda::data_of<int32_t>(a.counts),
                    a.tokens.size(),
                    a.experts.cols(),
                    chunks,
                    static_cast<int>(experts)};
  const int64_t bytes = experts * static_cast<int64_t>(sizeof(int32_t));
  allow_shared(reinterpret_cast<const void*>(&count_pairs), bytes);
  allow_shared(reinterpret_cast<const void*>(&place_pairs), bytes);
  const auto blocks = static_cast<unsigned>(chunks);
  if (chunks > 0) count_pairs<<<blocks, kWarp, static_cast<size_t>(bytes), stream>>>(group);
  scan_chunks<<<static_cast<unsigned>(cuda::ceil_div<int64_t>(experts, kThreads / kWarp)), kThreads, 0, stream>>>(
      group);
  scan_experts<<<1, kWarp, 0, stream>>>(group);
  if (chunks > 0) place_pairs<<<blocks, kWarp, static_cast<size_t>(bytes), stream>>>(group);
  cuda::check_launch("route");
}

void run(Cuda gpu, const CombineForward& a) {
  bool aligned = true;
  for (const Tensor& t : {a.x, a.add, a.y}) aligned = aligned && cuda::rows_aligned(t);
  cuda::with_type(a.x.dtype, [&]<class X>() {
    cuda::with_type(a.y.dtype, [&]<class Y>() {
      cuda::for_elements(gpu, a.y.rows(), a.y.cols(), aligned,
                         Combine<X, Y>{a.x, cuda::data_of<const float>(a.weights), a.weights.row_stride(),
                                       cuda::data_of<const int64_t>(a.rows), a.weights.cols(), a.add, a.y, a.alpha},
                         "combine");
    });
  });
}

}  // namespace elapid
