#include "elapid/ops/ssd_scan/ssd_scan_cuda.cuh"

namespace elapid {
namespace {

using cuda::Floats, cuda::from_float, cuda::to_float, cuda::Ssd, cuda::Segment;

// --- One token ---------------------------------------------------------------------------------------------------

constexpr int kStepRows = 8;  // of a head's state in a warp: as many loads in flight
constexpr int kStepWarps = 4;

// The recurrence itself: the state is read and written once. A warp has kStepRows rows of one head, N neighbouring
// elements of each in a lane.
template <class T, int N, bool kWide>
__global__ void __launch_bounds__(kStepWarps* cuda::kWarp) step(Ssd<T> a) {
  const int lane = threadIdx.x % cuda::kWarp;
  const int64_t pieces = cuda::ceil_div<int64_t>(a.head_dim, kStepRows);
  const int64_t work = int64_t{blockIdx.x} * kStepWarps + threadIdx.x / cuda::kWarp;
  if (work >= a.heads * pieces) return;
  const int64_t head = work / pieces, first_row = work % pieces * kStepRows, s = blockIdx.y;
  const int64_t t = a.offsets[s], slot = a.slots[s];
  if (a.offsets[s + 1] != t + 1) return;
  const int rows = static_cast<int>(min(int64_t{kStepRows}, a.head_dim - first_row));
  const int64_t n = lane * N, group = head / (a.heads / a.groups);
  float* state = slot < 0 ? nullptr : a.state_of(slot, head) + first_row * a.d_state + n;

  float h[kStepRows][N];
#pragma unroll
  for (int r = 0; r < kStepRows; ++r) {
#pragma unroll
    for (int i = 0; i < N; ++i) h[r][i] = 0;
    if (state == nullptr || r >= rows) continue;
    if constexpr (kWide) {
      if (n < a.d_state) {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
          const Floats<(N < 4 ? N : 4)> part =
              *reinterpret_cast<const Floats<(N < 4 ? N : 4)>*>(state + r * a.d_state + i);
#pragma unroll
          for (int j = 0; j < 4 && j < N; ++j) h[r][i + j] = part.at[j];
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (n + i < a.d_state) h[r][i] = state[r * a.d_state + i];
      }
    }
  }
  float B[N], C[N];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const bool there = n + i < a.d_state;
    B[i] = there ? to_float(a.B[t * a.B_stride + group * a.d_state + n + i]) : 0;
    C[i] = there ? to_float(a.C[t * a.C_stride + group * a.d_state + n + i]) : 0;
  }
  const float dt = a.time_step(t, head), exponent = dt * a.A[head];
  const float decay = exponent < cuda::kLowestDecay ? 0 : expf(exponent);
  float x[kStepRows], y[kStepRows];
#pragma unroll
  for (int r = 0; r < kStepRows; ++r) {
    x[r] = r < rows ? to_float(a.x[t * a.x_stride + head * a.head_dim + first_row + r]) : 0;
  }
#pragma unroll
  for (int r = 0; r < kStepRows; ++r) {
    const float weighted = dt * x[r];
    y[r] = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      h[r][i] = fmaf(decay, h[r][i], weighted * B[i]);
      // Lanes beyond the state must add nothing, whatever x is.
      if (n + i < a.d_state) y[r] = fmaf(C[i], h[r][i], y[r]);
    }
    if (state == nullptr || r >= rows) continue;
    if constexpr (kWide) {
      if (n < a.d_state) {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
          Floats<(N < 4 ? N : 4)> part;
#pragma unroll
          for (int j = 0; j < 4 && j < N; ++j) part.at[j] = h[r][i + j];
          *reinterpret_cast<Floats<(N < 4 ? N : 4)>*>(state + r * a.d_state + i) = part;
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (n + i < a.d_state) state[r * a.d_state + i] = h[r][i];
      }
    }
  }
  // Sums over lanes. In the first three rounds they share the rows out.
#pragma unroll
  for (int half = kStepRows / 2, lanes = 16; half > 0; half /= 2, lanes /= 2) {
    const bool upper = (lane & lanes) != 0;
#pragma unroll
    for (int j = 0; j < half; ++j) {
      const float kept = upper ? y[j + half] : y[j], sent = upper ? y[j] : y[j + half];
      y[j] = kept + __shfl_xor_sync(cuda::kAllLanes, sent, lanes);
    }
  }
  float sum = y[0];
  sum += __shfl_xor_sync(cuda::kAllLanes, sum, 2);
  sum += __shfl_xor_sync(cuda::kAllLanes, sum, 1);
  const int row = lane / 4;  // the row that this lane and three others have
  if (lane % 4 == 0 && row < rows) {
    const int64_t column = head * a.head_dim + first_row + row;
    const float skip = a.skip_weight(head, first_row + row) * to_float(a.x[t * a.x_stride + column]);
    a.y[t * a.heads * a.head_dim + column] = from_float<T>(sum + skip);
  }
}

template <class T, int N>
void launch_step(cudaStream_t stream, const Ssd<T>& a) {
  const int64_t warps = a.heads * cuda::ceil_div<int64_t>(a.head_dim, kStepRows);
  const dim3 grid(static_cast<unsigned>(cuda::ceil_div<int64_t>(warps, kStepWarps)),
                  static_cast<unsigned>(a.sequences));
  const bool wide = a.d_state % N == 0 && reinterpret_cast<uintptr_t>(a.state) % 16 == 0;
  wide ? step<T, N, true><<<grid, kStepWarps * cuda::kWarp, 0, stream>>>(a)
       : step<T, N, false><<<grid, kStepWarps * cuda::kWarp, 0, stream>>>(a);
}

// --- Chunks in float32 -------------------------------------------------------------------------------------------

constexpr int kChunk = static_cast<int>(kSsdChunk), kRows = 64, kSlice = 64, kThreads = 256;
constexpr int kPadded = kChunk + 4;  // floats from one row of a transposed tile to the next
static_assert(kChunk == 64 && kRows == 64 && kSlice == 64 && kThreads == 256);

// A block has kRows rows of one head's state in shared memory, [d_state, kRows], and walks the chunks of a segment. The
// operands B and C come by slices of kSlice states, transposed. Every product is 64×64×64: thread (i, j) of 16×16 has
// four rows by four columns of it.
struct ChunkMemory {
  float B[kSlice][kPadded], C[kSlice][kPadded];
  float x[kChunk][kRows];
  float mixed[kChunk][kPadded];  // C Bᵀ with decays and time steps
  float dt[kChunk], decay[kChunk], inflow[kChunk], outflow[kChunk];
};

__device__ void zero(float (&t)[4][4]) {
#pragma unroll
  for (auto& row : t) {
#pragma unroll
    for (float& v : row) v = 0;
  }
}
__device__ float4 four(const float* p) { return *reinterpret_cast<const float4*>(p); }
// t += a ⊗ b
__device__ void outer(float (&t)[4][4], float4 a, float4 b) {
  const float left[] = {a.x, a.y, a.z, a.w}, right[] = {b.x, b.y, b.z, b.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) t[i][j] = fmaf(left[i], right[j], t[i][j]);
  }
}

// Time steps and decays of a chunk: cs, the running sum of dt · A, is in `decay`. Of the first warp, two tokens a lane;
// but the sum is one lane's, token after token: between neighbours, whose decay is little, its error is little.
template <class T>
__device__ float chunk_scalars(const Ssd<T>& a, ChunkMemory& m, int64_t token, int length, int64_t head) {
  const int lane = threadIdx.x;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int at = lane + i * cuda::kWarp;
    const float dt = at < length ? a.time_step(token + at, head) : 0, step = dt * a.A[head];
    m.dt[at] = dt;
    m.decay[at] = at >= length ? 0 : step < cuda::kLowestDecay ? cuda::kLowestDecay : step;
  }
  __syncwarp();
  if (lane == 0) {
    float sum = 0;
#pragma unroll 8
    for (float& step : m.decay) step = sum = sum + step;
  }
  __syncwarp();
  const float total = m.decay[kChunk - 1];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int at = lane + i * cuda::kWarp;
    m.inflow[at] = expf(m.decay[at]);
    m.outflow[at] = m.dt[at] * expf(fminf(total - m.decay[at], 0));
  }
  return total;
}

template <bool outputs>
__global__ void __launch_bounds__(kThreads) walk(Ssd<float> a) {
  extern __shared__ __align__(16) char memory[];
  ChunkMemory& m = *reinterpret_cast<ChunkMemory*>(memory);
  float* state = reinterpret_cast<float*>(&m + 1);  // [d_state rounded up to slices, kRows]
  __shared__ float chunk_total;

  const int64_t tiles = cuda::ceil_div<int64_t>(a.head_dim, kRows);
  const int64_t head = blockIdx.x / tiles % a.heads, first_row = blockIdx.x % tiles * kRows;
  const Segment segment(a, blockIdx.x / tiles / a.heads);
  if (!outputs && segment.is_last()) return;
  const int64_t group = head / (a.heads / a.groups);
  const int rows = static_cast<int>(min(int64_t{kRows}, a.head_dim - first_row)), states = static_cast<int>(a.d_state);
  const int slices = (states + kSlice - 1) / kSlice;
  const int i0 = static_cast<int>(threadIdx.x) / 16 * 4, j0 = static_cast<int>(threadIdx.x) % 16 * 4;

  const float* before = outputs ? segment.before(a, head) : nullptr;
  for (int i = threadIdx.x; i < slices * kSlice * kRows; i += kThreads) {
    // Neighbouring threads read neighbouring states of a row.
    const int n = i % (slices * kSlice), p = i / (slices * kSlice);
    const bool there = before != nullptr && n < states && p < rows;
    state[n * kRows + p] = there ? before[(first_row + p) * a.d_state + n] : 0;
  }
  float* after = segment.after(a, head, outputs);
  float segment_total = 0;
  for (int64_t token = segment.begin; token < segment.end; token += kChunk) {
    const int length = static_cast<int>(min(int64_t{kChunk}, segment.end - token));
    __syncthreads();
    if (threadIdx.x < cuda::kWarp) {
      const float total = chunk_scalars(a, m, token, length, head);
      if (threadIdx.x == 0) chunk_total = total;
    }
    for (int i = threadIdx.x; i < kChunk * kRows; i += kThreads) {
      const int t = i / kRows, p = i % kRows;
      const bool there = t < length && p < rows;
      m.x[t][p] = there ? a.x[(token + t) * a.x_stride + head * a.head_dim + first_row + p] : 0;
    }
    float scores[4][4], y[4][4];
    zero(scores);
    zero(y);
    const bool advances = after != nullptr || token + length < segment.end;
    for (int slice = 0; slice < slices; ++slice) {
      for (int i = threadIdx.x; i < kChunk * kSlice; i += kThreads) {
        const int t = i / kSlice, n = i % kSlice, column = slice * kSlice + n;
        const bool there = t < length && column < states;
        const int64_t at = group * a.d_state + column;
        m.B[n][t] = there ? a.B[(token + t) * a.B_stride + at] : 0;
        if (outputs) m.C[n][t] = there ? a.C[(token + t) * a.C_stride + at] : 0;
      }
      __syncthreads();
      float* part = state + slice * kSlice * kRows;
      if (outputs) {
#pragma unroll 4
        for (int n = 0; n < kSlice; ++n) {
          const float4 c = four(&m.C[n][i0]);
          outer(scores, c, four(&m.B[n][j0]));
          outer(y, c, four(&part[n * kRows + j0]));
        }
      }
      if (advances) {
        float added[4][4];
        zero(added);
#pragma unroll 4
        for (int t = 0; t < length; ++t) {
          const float w = m.outflow[t];
          outer(added, {w * m.B[i0][t], w * m.B[i0 + 1][t], w * m.B[i0 + 2][t], w * m.B[i0 + 3][t]}, four(&m.x[t][j0]));
        }
        __syncthreads();  // the old state was read
        const float decay = expf(chunk_total);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            float& s = part[(i0 + i) * kRows + j0 + j];
            s = fmaf(decay, s, added[i][j]);
          }
        }
      }
      __syncthreads();
    }
    segment_total += chunk_total;
    if constexpr (outputs) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int t = i0 + i;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int from = j0 + j;
          // Only differences ≤ 0 are ever exponentiated.
          m.mixed[t][from] = from <= t ? scores[i][j] * expf(fminf(m.decay[t] - m.decay[from], 0)) * m.dt[from] : 0;
          y[i][j] *= m.inflow[t];
        }
      }
      __syncthreads();
#pragma unroll 4
      for (int from = 0; from < i0 + 4; ++from) {
        outer(y, {m.mixed[i0][from], m.mixed[i0 + 1][from], m.mixed[i0 + 2][from], m.mixed[i0 + 3][from]},
              four(&m.x[from][j0]));
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int t = i0 + i;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int p = j0 + j;
          if (t >= length || p >= rows) continue;
          const float skip = a.skip_weight(head, first_row + p) * m.x[t][p];
          a.y[((token + t) * a.heads + head) * a.head_dim + first_row + p] = y[i][j] + skip;
        }
      }
    }
  }
  if (after == nullptr) return;
  __syncthreads();
  for (int i = threadIdx.x; i < slices * kSlice * kRows; i += kThreads) {
    const int n = i % (slices * kSlice), p = i / (slices * kSlice);
    if (n < states && p < rows) after[(first_row + p) * a.d_state + n] = state[n * kRows + p];
  }
  if (!outputs && first_row == 0 && threadIdx.x == 0) a.carry_decay[segment.carry * a.heads + head] = segment_total;
}

void walk_chunks(cudaStream_t stream, const Ssd<float>& a, int64_t segments, bool outputs) {
  const int64_t slices = cuda::ceil_div<int64_t>(a.d_state, kSlice);
  const auto bytes = static_cast<int>(sizeof(ChunkMemory) + slices * kSlice * kRows * sizeof(float));
  const auto kernel = outputs ? walk<true> : walk<false>;
  cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "cudaFuncSetAttribute");
  const int64_t blocks = segments * a.heads * cuda::ceil_div<int64_t>(a.head_dim, kRows);
  kernel<<<static_cast<unsigned>(blocks), kThreads, bytes, stream>>>(a);
}

// --- Between segments --------------------------------------------------------------------------------------------

// carries[k], the state that segment k leaves when it begins with zero, becomes the one that it really leaves.
template <class T>
__global__ void __launch_bounds__(kThreads) carry(Ssd<T> a) {
  const int64_t per_head = a.head_dim * a.d_state, size = a.heads * per_head;
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x, s = blockIdx.y;
  const int64_t first = a.carry_begin[s], last = a.carry_begin[s + 1];
  if (at >= size || first == last) return;
  const int64_t head = at / per_head;
  float now = a.slots[s] < 0 ? 0 : a.state[a.slots[s] * size + at];
  constexpr int kAhead = 4;
  for (int64_t k = first; k < last; k += kAhead) {
    float own[kAhead], decay[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (k + i >= last) break;
      own[i] = a.carries[(k + i) * size + at];
      decay[i] = expf(a.carry_decay[(k + i) * a.heads + head]);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (k + i >= last) break;
      now = fmaf(decay[i], now, own[i]);
      a.carries[(k + i) * size + at] = now;
    }
  }
}

template <class T>
void launch_scan(cudaStream_t stream, const SsdScanForward& a) {
  const Ssd<T> scan(a);
  if (a.singles > 0) {
    if (scan.d_state <= 32) {
      launch_step<T, 1>(stream, scan);
    } else if (scan.d_state <= 64) {
      launch_step<T, 2>(stream, scan);
    } else if (scan.d_state <= 128) {
      launch_step<T, 4>(stream, scan);
    } else {
      launch_step<T, 8>(stream, scan);
    }
    cuda::check_launch("ssd_scan, one token");
  }
  if (a.segments == 0) return;
  const auto walk_segments = [&](bool outputs) {
    if constexpr (sizeof(T) == sizeof(float)) {
      walk_chunks(stream, scan, a.segments, outputs);
    } else {
      cuda::ssd_scan_tiles(stream, scan, a.segments, outputs);
    }
  };
  if constexpr (sizeof(T) != sizeof(float)) cuda::ssd_scan_scalars(stream, scan, a.chunks.shape[0]);
  if (a.carries.shape[0] > 0) {
    walk_segments(false);
    const int64_t size = scan.heads * scan.head_dim * scan.d_state;
    carry<T>
        <<<dim3(static_cast<unsigned>(cuda::ceil_div<int64_t>(size, kThreads)), static_cast<unsigned>(scan.sequences)),
           kThreads, 0, stream>>>(scan);
  }
  walk_segments(true);
}

}  // namespace

void run(Cuda gpu, const SsdScanForward& a) {
  if (a.in.x.rows() == 0 || a.head_dim == 0 || a.d_state == 0) return;
  cuda::with_type(a.in.x.dtype, [&]<class T>() { launch_scan<T>(cuda::stream_of(gpu), a); });
  cuda::check_launch("ssd_scan");
}

}  // namespace elapid
