#include "elapid/cuda/mma.cuh"
#include "elapid/cuda/sequences.cuh"
#include "elapid/ops/attention/attention.h"

// Keys are taken by blocks of kPageTokens, as attention.h says. In float32 one kernel has both forms: what a block
// gives to a row is computed by the same operations whether blocks are spread over the device (few rows) or taken one
// after another (many), and merged by the same operations in the same order.

namespace elapid {
namespace {

using cuda::bf16, cuda::from_float, cuda::to_float;

constexpr int kKeys = static_cast<int>(kPageTokens), kThreads = 256;
constexpr int kManyRows = static_cast<int>(kCudaQueryRows), kFewRows = static_cast<int>(kFewQueryRows);
static_assert(kKeys == 64 && kManyRows == 64 && kFewRows == 16);
constexpr float kInfinity = __builtin_inff();

template <class T>
struct Attend {
  const T *q, *k, *v;
  T* y;
  float *keys, *values, *partials;
  const int32_t* page_table;
  const int64_t *offsets, *slots, *past, *tasks, *query_tasks, *partial, *merges;
  int64_t q_stride, k_stride, v_stride, table_stride, partial_stride;
  int64_t sequences, heads, kv_heads, head_dim, query_tokens;
  float scale;

  explicit Attend(const AttentionForward& a) : Attend(a.in, a.cache, a.head_dim) {
    y = cuda::data_of<T>(a.y);
    partials = cuda::data_of<float>(a.partials);
    offsets = cuda::data_of<int64_t>(a.offsets);
    slots = cuda::data_of<int64_t>(a.slots);
    past = cuda::data_of<int64_t>(a.past);
    tasks = cuda::data_of<int64_t>(a.tasks);
    query_tasks = cuda::data_of<int64_t>(a.query_tasks);
    partial = cuda::data_of<int64_t>(a.partial);
    merges = cuda::data_of<int64_t>(a.merges);
    partial_stride = a.partials.cols();
    sequences = a.slots.size();
    query_tokens = a.query_tokens;
  }
  Attend(const AttentionInputs& in, const KvCache& cache, int64_t head_dim_)
      : q(cuda::data_of<T>(in.q)),
        k(cuda::data_of<T>(in.k)),
        v(cuda::data_of<T>(in.v)),
        keys(cuda::data_of<float>(cache.keys)),
        values(cuda::data_of<float>(cache.values)),
        page_table(cuda::data_of<int32_t>(cache.page_table)),
        q_stride(in.q.row_stride()),
        k_stride(in.k.row_stride()),
        v_stride(in.v.row_stride()),
        table_stride(cache.page_table.row_stride()),
        heads(in.heads),
        kv_heads(in.kv_heads),
        head_dim(head_dim_),
        scale(in.scale) {}

  [[nodiscard]] __device__ int64_t group() const { return heads / kv_heads; }
  [[nodiscard]] __device__ int64_t past_of(int64_t s) const { return past == nullptr ? 0 : past[s]; }
};

// Where a sequence's keys and values are: in its pages, or in the call.
template <class T>
struct Memory {
  const float *keys = nullptr, *values = nullptr;  // pages
  const int32_t* pages = nullptr;
  const T *k, *v;
  int64_t k_stride, v_stride, width;

  __device__ Memory(const Attend<T>& a, int64_t slot, int64_t first_token)
      : k(a.k + first_token * a.k_stride),
        v(a.v + first_token * a.v_stride),
        k_stride(a.k_stride),
        v_stride(a.v_stride),
        width(a.kv_heads * a.head_dim) {
    if (slot < 0) return;
    keys = a.keys;
    values = a.values;
    pages = a.page_table + slot * a.table_stride;
  }
  // Rows of a block of keys, from `position` on, a multiple of kKeys.
  struct Rows {
    const float* paged;
    const T* own;
    int64_t stride;
    __device__ float at(int64_t row, int64_t column) const {
      return paged != nullptr ? paged[row * stride + column] : to_float(own[row * stride + column]);
    }
  };
  __device__ Rows key_rows(int64_t position) const { return rows(keys, k, k_stride, position); }
  __device__ Rows value_rows(int64_t position) const { return rows(values, v, v_stride, position); }

 private:
  __device__ Rows rows(const float* paged, const T* own, int64_t stride, int64_t position) const {
    if (pages == nullptr) return {nullptr, own + position * stride, stride};
    return {paged + int64_t{pages[position / kKeys]} * kKeys * width, nullptr, width};
  }
};

// The call's keys and values into the pages.
template <class T>
__global__ void __launch_bounds__(kThreads) append(Attend<T> a, int64_t tokens) {
  const int64_t width = a.kv_heads * a.head_dim;
  for (int64_t t = blockIdx.x; t < tokens; t += gridDim.x) {
    const int64_t s = cuda::range_of(a.offsets, a.sequences, t), slot = a.slots[s];
    if (slot < 0) continue;
    const int64_t position = a.past_of(s) + t - a.offsets[s];
    const int64_t page = a.page_table[slot * a.table_stride + position / kKeys];
    const int64_t row = (page * kKeys + position % kKeys) * width;
    for (int64_t c = threadIdx.x; c < width; c += kThreads) {
      a.keys[row + c] = to_float(a.k[t * a.k_stride + c]);
      a.values[row + c] = to_float(a.v[t * a.v_stride + c]);
    }
  }
}

// What blocks of keys have given to a row so far.
struct Running {
  float m = -kInfinity, l = 0;
};
struct Factors {
  float old, added;
};
// Takes in a block's m and l; returns what o so far and the block's are multiplied by.
__device__ Factors merge(Running& r, float m, float l) {
  const float top = fmaxf(r.m, m);
  const Factors f{r.m == -kInfinity ? 0 : expf(r.m - top), expf(m - top)};
  r.l = fmaf(l, f.added, r.l * f.old);
  r.m = top;
  return f;
}

// Shared memory of a block of `rows` query rows.
template <int rows>
struct Tile {
  float *q, *k, *v, *p, *m, *l;
  int stride;  // floats from a row to the next: odd, so that a column lies in different banks

  __device__ Tile(float* memory, int head_dim) : stride(head_dim | 1) {
    q = memory;
    k = q + rows * stride;
    v = k + kKeys * stride;
    p = v + kKeys * stride;
    m = p + rows * (kKeys + 1);
    l = m + rows;
  }
  static int64_t bytes(int64_t head_dim) {
    return static_cast<int64_t>(sizeof(float)) * ((rows + 2 * kKeys) * (head_dim | 1) + rows * (kKeys + 1) + 2 * rows);
  }
};

// A block of threads has `rows` query rows of one kv head: the heads of its group for one token, then the next token's.
// kSpread: one block of keys, whose m, l and o go to partials. Else all of them, merged as they come.
template <class T, int rows, bool kSpread, int kWide>
__global__ void __launch_bounds__(kThreads) attend(Attend<T> a) {
  constexpr int kOwnRows = rows / 16, kOwnColumns = kWide / 16;
  extern __shared__ float shared[];
  const int64_t* tasks = kSpread ? a.tasks : a.query_tasks;
  const int64_t s = cuda::range_of(tasks, a.sequences, blockIdx.x), task = blockIdx.x - tasks[s];
  const int64_t first = a.offsets[s], length = a.offsets[s + 1] - first, past = a.past_of(s), group = a.group();
  const int64_t kv_head = task % a.kv_heads, piece = task / a.kv_heads;
  const int64_t first_query = kSpread ? 0 : piece * a.query_tokens;
  const int64_t queries = kSpread ? length : min(a.query_tokens, length - first_query);
  const int count = static_cast<int>(queries * group), head_dim = static_cast<int>(a.head_dim);
  const Tile<rows> tile(shared, head_dim);
  const Memory<T> memory(a, a.slots[s], first);
  const int y0 = static_cast<int>(threadIdx.x) / 16, x0 = static_cast<int>(threadIdx.x) % 16;
  const int lane = threadIdx.x % cuda::kWarp, warp = threadIdx.x / cuda::kWarp;

  for (int i = threadIdx.x; i < rows * head_dim; i += kThreads) {
    const int row = i / head_dim, d = i % head_dim;
    float value = 0;
    if (row < count) {
      const int64_t t = first + first_query + row / group, head = kv_head * group + row % group;
      value = to_float(a.q[t * a.q_stride + head * a.head_dim + d]);
    }
    tile.q[row * tile.stride + d] = value;
  }
  // Of this thread's rows, y0 + 16 i: how many keys each sees.
  int64_t seen[kOwnRows];
  Running running[kOwnRows];
  float o[kOwnRows][kOwnColumns];
#pragma unroll
  for (int i = 0; i < kOwnRows; ++i) {
    const int row = y0 + 16 * i;
    seen[i] = row < count ? past + first_query + row / group + 1 : 0;
#pragma unroll
    for (int j = 0; j < kOwnColumns; ++j) o[i][j] = 0;
  }
  const int64_t all = past + first_query + queries;
  const int64_t begin = kSpread ? piece * kKeys : 0, end = kSpread ? min(all, begin + kKeys) : all;
  for (int64_t position = begin; position < end; position += kKeys) {
    const int keys = static_cast<int>(min(int64_t{kKeys}, all - position));
    __syncthreads();
    const auto key_rows = memory.key_rows(position), value_rows = memory.value_rows(position);
    for (int i = threadIdx.x; i < kKeys * head_dim; i += kThreads) {
      const int row = i / head_dim, d = i % head_dim;
      const int64_t column = kv_head * a.head_dim + d;
      tile.k[row * tile.stride + d] = row < keys ? key_rows.at(row, column) : 0;
      tile.v[row * tile.stride + d] = row < keys ? value_rows.at(row, column) : 0;
    }
    __syncthreads();
    float scores[kOwnRows][4] = {};
    for (int d = 0; d < head_dim; ++d) {
      float key[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) key[j] = tile.k[(x0 + 16 * j) * tile.stride + d];
#pragma unroll
      for (int i = 0; i < kOwnRows; ++i) {
        const float query = tile.q[(y0 + 16 * i) * tile.stride + d];
#pragma unroll
        for (int j = 0; j < 4; ++j) scores[i][j] = fmaf(query, key[j], scores[i][j]);
      }
    }
#pragma unroll
    for (int i = 0; i < kOwnRows; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) tile.p[(y0 + 16 * i) * (kKeys + 1) + x0 + 16 * j] = __fmul_rn(scores[i][j], a.scale);
    }
    __syncthreads();
    for (int row = warp; row < count; row += kThreads / cuda::kWarp) {
      const int64_t limit = past + first_query + row / group + 1 - position;
      float* p = tile.p + row * (kKeys + 1);
      const bool there[2] = {lane < limit, lane + cuda::kWarp < limit};
      const float score[2] = {p[lane], p[lane + cuda::kWarp]};
      const float m = cuda::warp_max(fmaxf(there[0] ? score[0] : -kInfinity, there[1] ? score[1] : -kInfinity));
      float weight[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        weight[j] = there[j] ? expf(score[j] - m) : 0;
        p[lane + j * cuda::kWarp] = weight[j];
      }
      const float l = cuda::warp_sum(weight[0] + weight[1]);
      if (lane == 0) {
        tile.m[row] = m;
        tile.l[row] = l;
      }
    }
    __syncthreads();
    float added[kOwnRows][kOwnColumns] = {};
    int64_t least = kKeys;
#pragma unroll
    for (int i = 0; i < kOwnRows; ++i) least = min(least, seen[i] - position);
    const auto key = [&](int j, auto masked) {
      float p[kOwnRows];
#pragma unroll
      for (int i = 0; i < kOwnRows; ++i) p[i] = tile.p[(y0 + 16 * i) * (kKeys + 1) + j];
#pragma unroll
      for (int c = 0; c < kOwnColumns; ++c) {
        const int d = x0 + 16 * c;
        if (d >= head_dim) break;
        const float value = tile.v[j * tile.stride + d];
#pragma unroll
        for (int i = 0; i < kOwnRows; ++i) {
          // A value that a row does not see adds nothing, even when it is NaN.
          if (!decltype(masked)::value || j < seen[i] - position) added[i][c] = fmaf(p[i], value, added[i][c]);
        }
      }
    };
    if (least >= kKeys) {
      for (int j = 0; j < kKeys; ++j) key(j, std::false_type{});
    } else {
      for (int j = 0; j < keys; ++j) key(j, std::true_type{});
    }
#pragma unroll
    for (int i = 0; i < kOwnRows; ++i) {
      const int row = y0 + 16 * i;
      if (seen[i] <= position) continue;
      if constexpr (kSpread) {
        // Rows of a block of keys lie together, block after block.
        float* to = a.partials + (a.partial[s] + (piece * a.kv_heads + kv_head) * count + row) * a.partial_stride;
        if (x0 == 0) {
          to[0] = tile.m[row];
          to[1] = tile.l[row];
        }
#pragma unroll
        for (int c = 0; c < kOwnColumns; ++c) {
          if (x0 + 16 * c < head_dim) to[16 + x0 + 16 * c] = added[i][c];
        }
      } else {
        const Factors f = merge(running[i], tile.m[row], tile.l[row]);
#pragma unroll
        for (int c = 0; c < kOwnColumns; ++c) o[i][c] = fmaf(added[i][c], f.added, o[i][c] * f.old);
      }
    }
  }
  if constexpr (!kSpread) {
#pragma unroll
    for (int i = 0; i < kOwnRows; ++i) {
      const int row = y0 + 16 * i;
      if (row >= count) continue;
      const int64_t t = first + first_query + row / group, head = kv_head * group + row % group;
#pragma unroll
      for (int c = 0; c < kOwnColumns; ++c) {
        const int d = x0 + 16 * c;
        if (d < head_dim) a.y[(t * a.heads + head) * a.head_dim + d] = from_float<T>(o[i][c] / running[i].l);
      }
    }
  }
}

// Of sequences of few rows: the blocks' results, merged in order. A warp has a row.
template <class T, int kWide>
__global__ void __launch_bounds__(kThreads) merge_blocks(Attend<T> a, int64_t rows) {
  constexpr int kOwn = kWide / cuda::kWarp > 0 ? kWide / cuda::kWarp : 1, kAhead = 4;
  const int64_t at = int64_t{blockIdx.x} * (kThreads / cuda::kWarp) + threadIdx.x / cuda::kWarp;
  if (at >= rows) return;
  const int lane = threadIdx.x % cuda::kWarp;
  const int64_t s = cuda::range_of(a.merges, a.sequences, at), group = a.group();
  const int64_t first = a.offsets[s], length = a.offsets[s + 1] - first, past = a.past_of(s);
  const int64_t count = length * group, kv_head = (at - a.merges[s]) / count, row = (at - a.merges[s]) % count;
  const int64_t seen = past + row / group + 1, blocks = cuda::ceil_div<int64_t>(seen, kKeys);
  const float* from = a.partials + (a.partial[s] + kv_head * count + row) * a.partial_stride;
  const int64_t block_stride = a.kv_heads * count * a.partial_stride;
  Running running;
  float o[kOwn] = {};
  for (int64_t b = 0; b < blocks; b += kAhead) {
    float m[kAhead], l[kAhead], added[kAhead][kOwn];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (b + i >= blocks) break;
      const float* block = from + (b + i) * block_stride;
      m[i] = block[0];
      l[i] = block[1];
#pragma unroll
      for (int c = 0; c < kOwn; ++c) {
        const int d = lane + c * cuda::kWarp;
        added[i][c] = d < a.head_dim ? block[16 + d] : 0;
      }
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (b + i >= blocks) break;
      const Factors f = merge(running, m[i], l[i]);
#pragma unroll
      for (int c = 0; c < kOwn; ++c) o[c] = fmaf(added[i][c], f.added, o[c] * f.old);
    }
  }
  const int64_t t = first + row / group, head = kv_head * group + row % group;
#pragma unroll
  for (int c = 0; c < kOwn; ++c) {
    const int d = lane + c * cuda::kWarp;
    if (d < a.head_dim) a.y[(t * a.heads + head) * a.head_dim + d] = from_float<T>(o[c] / running.l);
  }
}

// --- Many rows of bf16: tensor cores -----------------------------------------------------------------------------

constexpr int kTensorWarps = kManyRows / 16, kTensorThreads = kTensorWarps * cuda::kWarp;

template <int kWide>
struct TensorTile {
  static constexpr int kStride = kWide + 8;
  bf16 q[kManyRows * kStride], k[kKeys * kStride], v[kKeys * kStride];
};

// The same with the rows of a warp, sixteen, in accumulators; m, l and o are rescaled as the largest score rises.
template <int kWide>
__global__ void __launch_bounds__(kTensorThreads) attend_tensor(Attend<bf16> a) {
  extern __shared__ __align__(16) char shared_bytes[];
  auto& tile = *reinterpret_cast<TensorTile<kWide>*>(shared_bytes);
  constexpr int kStride = TensorTile<kWide>::kStride;
  const int64_t s = cuda::range_of(a.query_tasks, a.sequences, blockIdx.x), task = blockIdx.x - a.query_tasks[s];
  const int64_t first = a.offsets[s], length = a.offsets[s + 1] - first, past = a.past_of(s);
  const int group = static_cast<int>(a.group());
  const int64_t kv_head = task % a.kv_heads;
  // The last rows see most keys: they begin first.
  const int64_t pieces = cuda::ceil_div(length, a.query_tokens),
                first_query = (pieces - 1 - task / a.kv_heads) * a.query_tokens;
  const int64_t queries = min(a.query_tokens, length - first_query);
  const int count = static_cast<int>(queries) * group, head_dim = static_cast<int>(a.head_dim);
  const Memory<bf16> memory(a, a.slots[s], first);
  const int lane = threadIdx.x % cuda::kWarp, warp = threadIdx.x / cuda::kWarp;
  const int row0 = 16 * warp + lane / 4, column = lane % 4 * 2;

  for (int i = threadIdx.x; i < kManyRows * kWide; i += kTensorThreads) {
    const int row = i / kWide, d = i % kWide;
    bf16 value = __float2bfloat16_rn(0.0f);
    if (row < count && d < head_dim) {
      const int64_t t = first + first_query + row / group, head = kv_head * group + row % group;
      value = a.q[t * a.q_stride + head * a.head_dim + d];
    }
    tile.q[row * kStride + d] = value;
  }
  __syncthreads();
  uint32_t q[kWide / 16][4];
#pragma unroll
  for (int i = 0; i < kWide / 16; ++i) cuda::load_matrices(q[i], cuda::part_of_a(tile.q, kStride, 16 * warp, 16 * i));

  float o[kWide / 8][4] = {}, m[2] = {-kInfinity, -kInfinity}, l[2] = {};
  int64_t seen[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) seen[i] = past + first_query + (row0 + 8 * i) / group + 1;
  const float scale = a.scale * 1.4426950408889634f;
  const int64_t all = past + first_query + queries;
  for (int64_t position = 0; position < all; position += kKeys) {
    const int keys = static_cast<int>(min(int64_t{kKeys}, all - position));
    __syncthreads();
    const auto key_rows = memory.key_rows(position), value_rows = memory.value_rows(position);
    for (int i = threadIdx.x; i < kKeys * kWide / 2; i += kTensorThreads) {
      const int row = i / (kWide / 2), d = i % (kWide / 2) * 2;
      const int64_t from = kv_head * a.head_dim + d;
      float k[2] = {}, v[2] = {};
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (row < keys && d + j < head_dim) {
          k[j] = key_rows.at(row, from + j);
          v[j] = value_rows.at(row, from + j);
        }
      }
      *reinterpret_cast<uint32_t*>(&tile.k[row * kStride + d]) = cuda::packed(k[0], k[1]);
      *reinterpret_cast<uint32_t*>(&tile.v[row * kStride + d]) = cuda::packed(v[0], v[1]);
    }
    __syncthreads();
    float scores[kKeys / 8][4] = {};
#pragma unroll
    for (int d = 0; d < kWide / 16; ++d) {
#pragma unroll
      for (int j = 0; j < kKeys / 16; ++j) {
        uint32_t right[4];
        cuda::load_matrices(right, cuda::part_of_b(tile.k, kStride, 16 * j, 16 * d));
        cuda::multiply(scores[2 * j], q[d], right[0], right[1]);
        cuda::multiply(scores[2 * j + 1], q[d], right[2], right[3]);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float top = -kInfinity;
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& score = scores[j][2 * i + e];
          score = position + 8 * j + column + e < seen[i] ? score * scale : -kInfinity;
          top = fmaxf(top, score);
        }
      }
      top = fmaxf(top, __shfl_xor_sync(cuda::kAllLanes, top, 1));
      top = fmaxf(top, __shfl_xor_sync(cuda::kAllLanes, top, 2));
      const float next = fmaxf(m[i], top);
      // Nothing seen so far, or all of it −∞, is no NaN yet.
      const float base = next == -kInfinity ? 0 : next, factor = exp2f(m[i] - base);
      m[i] = next;
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& score = scores[j][2 * i + e];
          score = exp2f(score - base);
          sum += score;
        }
      }
      l[i] = fmaf(l[i], factor, sum);
#pragma unroll
      for (auto& part : o) {
        part[2 * i] *= factor;
        part[2 * i + 1] *= factor;
      }
    }
#pragma unroll
    for (int j = 0; j < kKeys / 16; ++j) {
      const uint32_t left[4] = {cuda::packed(scores[2 * j][0], scores[2 * j][1]),
                                cuda::packed(scores[2 * j][2], scores[2 * j][3]),
                                cuda::packed(scores[2 * j + 1][0], scores[2 * j + 1][1]),
                                cuda::packed(scores[2 * j + 1][2], scores[2 * j + 1][3])};
#pragma unroll
      for (int d = 0; d < kWide / 16; ++d) {
        uint32_t right[4];
        cuda::load_matrices_transposed(right, cuda::part_of_b_transposed(tile.v, kStride, 16 * j, 16 * d));
        cuda::multiply(o[2 * d], left, right[0], right[1]);
        cuda::multiply(o[2 * d + 1], left, right[2], right[3]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    l[i] += __shfl_xor_sync(cuda::kAllLanes, l[i], 1);
    l[i] += __shfl_xor_sync(cuda::kAllLanes, l[i], 2);
    const int row = row0 + 8 * i;
    if (row >= count) continue;
    const int64_t t = first + first_query + row / group, head = kv_head * group + row % group;
    bf16* to = a.y + (t * a.heads + head) * a.head_dim;
#pragma unroll
    for (int d = 0; d < kWide / 8; ++d) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (8 * d + column + e < head_dim) to[8 * d + column + e] = __float2bfloat16_rn(o[d][2 * i + e] / l[i]);
      }
    }
  }
}

// --- Weights, to look at -------------------------------------------------------------------------------------------

// One row: scores, then their softmax.
template <class T>
__global__ void __launch_bounds__(kThreads)
    weights_of_row(Attend<T> a, int64_t slot, int64_t begin, int64_t past, int64_t tokens, float* weights) {
  const int64_t t = blockIdx.x % tokens, head = blockIdx.x / tokens, all = past + tokens, seen = past + t + 1;
  const Memory<T> memory(a, slot, begin);
  const T* q = a.q + (begin + t) * a.q_stride + head * a.head_dim;
  const int64_t from = head / a.group() * a.head_dim;
  float* row = weights + (head * tokens + t) * all;
  float top = -kInfinity;
  for (int64_t j = threadIdx.x; j < all; j += kThreads) {
    float score = 0;
    if (j < seen) {
      // What the call itself brings is not in the pages yet.
      const bool own = j >= past;
      const auto rows = memory.key_rows(j / kKeys * kKeys);
      for (int64_t d = 0; d < a.head_dim; ++d) {
        const float key = own ? to_float(memory.k[(j - past) * a.k_stride + from + d]) : rows.at(j % kKeys, from + d);
        score = fmaf(to_float(q[d]), key, score);
      }
      score *= a.scale;
      top = fmaxf(top, score);
    }
    row[j] = score;
  }
  top = cuda::block_max(top);
  float sum = 0;
  for (int64_t j = threadIdx.x; j < seen; j += kThreads) {
    row[j] = expf(row[j] - top);
    sum += row[j];
  }
  sum = cuda::block_sum(sum);
  for (int64_t j = threadIdx.x; j < seen; j += kThreads) row[j] /= sum;
}

template <class T, int kWide>
void launch_wide(cudaStream_t stream, const Attend<T>& a, const AttentionForward& forward) {
  const auto launch_tiles = [&](auto kernel, int64_t tasks, int64_t bytes, int threads) {
    cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
                "cudaFuncSetAttribute");
    kernel<<<static_cast<unsigned>(tasks), threads, static_cast<size_t>(bytes), stream>>>(a);
    cuda::check_launch("attention");
  };
  if (forward.few > 0) {
    launch_tiles(attend<T, kFewRows, true, kWide>, forward.few, Tile<kFewRows>::bytes(a.head_dim), kThreads);
    const int64_t blocks = cuda::ceil_div<int64_t>(forward.merge_rows, kThreads / cuda::kWarp);
    merge_blocks<T, kWide><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(a, forward.merge_rows);
  }
  if (forward.many == 0) return;
  if constexpr (sizeof(T) == 2 && kWide <= 128) {
    launch_tiles(attend_tensor<kWide>, forward.many, sizeof(TensorTile<kWide>), kTensorThreads);
  } else {
    launch_tiles(attend<T, kManyRows, false, kWide>, forward.many, Tile<kManyRows>::bytes(a.head_dim), kThreads);
  }
}

}  // namespace

void run(Cuda gpu, const AttentionForward& a) {
  if (a.in.q.rows() == 0) return;
  const cudaStream_t stream = cuda::stream_of(gpu);
  cuda::with_type(a.in.q.dtype, [&]<class T>() {
    const Attend<T> attend_args(a);
    if (a.cache.keys) {
      const int64_t tokens = a.in.q.rows();
      append<T><<<static_cast<unsigned>(tokens < 65535 ? tokens : 65535), kThreads, 0, stream>>>(attend_args, tokens);
    }
    if (a.head_dim <= 64) {
      launch_wide<T, 64>(stream, attend_args, a);
    } else if (a.head_dim <= 128) {
      launch_wide<T, 128>(stream, attend_args, a);
    } else {
      launch_wide<T, 256>(stream, attend_args, a);
    }
  });
  cuda::check_launch("attention");
}

void run(Cuda gpu, const AttentionWeights& a) {
  if (a.tokens == 0) return;
  cuda::with_type(a.in.q.dtype, [&]<class T>() {
    const Attend<T> attend_args(a.in, a.cache, a.head_dim);
    weights_of_row<T><<<static_cast<unsigned>(a.in.heads * a.tokens), kThreads, 0, cuda::stream_of(gpu)>>>(
        attend_args, a.slot, a.begin, a.past, a.tokens, cuda::data_of<float>(a.weights));
  });
  cuda::check_launch("attention_weights");
}

}  // namespace elapid
