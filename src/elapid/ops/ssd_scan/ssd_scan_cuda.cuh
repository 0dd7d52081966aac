#pragma once

// What the CUDA forms of the scan share.

#include "elapid/cuda/launch.cuh"
#include "elapid/cuda/math.cuh"
#include "elapid/cuda/sequences.cuh"
#include "elapid/ops/ssd_scan/ssd_scan.h"

namespace elapid::cuda {

// e^−200 is zero in float32; a bound keeps the running sum of a chunk finite when A or dt is absurd, and −∞ − −∞ away.
inline constexpr float kLowestDecay = -200.0f;

template <class T>
struct Ssd {
  const T *x, *dt, *B, *C;
  T* y;
  const float *A, *D, *dt_bias;
  float *state, *carries, *carry_decay, *chunks;
  const int64_t *offsets, *slots, *segment_begin, *carry_begin, *chunk_begin;
  int64_t x_stride, dt_stride, B_stride, C_stride;
  int64_t sequences, heads, groups, head_dim, d_state;
  float dt_min, dt_max;
  bool D_per_head;
  bool wide_x, wide_operands;  // rows may be read sixteen bytes at a time: of x and y by head, of B and C by group

  explicit Ssd(const SsdScanForward& a)
      : x(data_of<T>(a.in.x)),
        dt(data_of<T>(a.in.dt)),
        B(data_of<T>(a.in.B)),
        C(data_of<T>(a.in.C)),
        y(data_of<T>(a.y)),
        A(data_of<float>(a.in.A)),
        D(data_of<float>(a.in.D)),
        dt_bias(data_of<float>(a.in.dt_bias)),
        state(data_of<float>(a.state)),
        carries(data_of<float>(a.carries)),
        carry_decay(data_of<float>(a.carry_decay)),
        chunks(data_of<float>(a.chunks)),
        offsets(data_of<int64_t>(a.offsets)),
        slots(data_of<int64_t>(a.slots)),
        segment_begin(data_of<int64_t>(a.segment_begin)),
        carry_begin(data_of<int64_t>(a.carry_begin)),
        chunk_begin(data_of<int64_t>(a.chunk_begin)),
        x_stride(a.in.x.row_stride()),
        dt_stride(a.in.dt.row_stride()),
        B_stride(a.in.B.row_stride()),
        C_stride(a.in.C.row_stride()),
        sequences(a.slots.size()),
        heads(a.in.dt.cols()),
        groups(a.in.groups),
        head_dim(a.head_dim),
        d_state(a.d_state),
        dt_min(a.in.dt_min),
        dt_max(a.in.dt_max),
        D_per_head(a.in.D.size() == a.in.dt.cols()) {
    constexpr int64_t kPack = Pack<T>::kSize;
    wide_x = head_dim % kPack == 0 && rows_aligned(a.in.x) && rows_aligned(a.y);
    wide_operands = d_state % kPack == 0 && rows_aligned(a.in.B) && rows_aligned(a.in.C);
  }

  __device__ float time_step(int64_t token, int64_t head) const {
    const float bias = dt_bias == nullptr ? 0 : dt_bias[head];
    const float step = softplus_short(to_float(dt[token * dt_stride + head]) + bias);
    // In this order NaN stays NaN.
    const float least = step < dt_min ? dt_min : step;
    return least > dt_max ? dt_max : least;
  }
  __device__ float skip_weight(int64_t head, int64_t row) const {
    return D == nullptr ? 0 : D[D_per_head ? head : head * head_dim + row];
  }
  __device__ float* state_of(int64_t slot, int64_t head) const {
    return slot < 0 ? nullptr : state + (slot * heads + head) * head_dim * d_state;
  }
  __device__ float* carry_of(int64_t carry, int64_t head) const {
    return carries + (carry * heads + head) * head_dim * d_state;
  }
};

// The part of a sequence that a block walks.
struct Segment {
  int64_t sequence, index, count;  // index among the sequence's own
  int64_t begin, end;              // tokens
  int64_t slot, carry;             // carry: the state after this segment, where another follows; before it, carry − 1

  template <class T>
  __device__ Segment(const Ssd<T>& a, int64_t segment) {
    sequence = range_of(a.segment_begin, a.sequences, segment);
    index = segment - a.segment_begin[sequence];
    count = a.segment_begin[sequence + 1] - a.segment_begin[sequence];
    const int64_t first = a.offsets[sequence], last = a.offsets[sequence + 1], tokens = ssd_segment(last - first);
    begin = first + index * tokens;
    end = min(last, begin + tokens);
    slot = a.slots[sequence];
    carry = a.carry_begin[sequence] + index;
  }
  [[nodiscard]] __device__ bool is_last() const { return index + 1 == count; }
  // Where the state before the segment is; null when it is zero. And where the one after it goes, or null.
  template <class T>
  __device__ const float* before(const Ssd<T>& a, int64_t head) const {
    return index > 0 ? a.carry_of(carry - 1, head) : a.state_of(slot, head);
  }
  template <class T>
  __device__ float* after(const Ssd<T>& a, int64_t head, bool outputs) const {
    if (!outputs) return a.carry_of(carry, head);
    return is_last() ? a.state_of(slot, head) : nullptr;
  }
};

// For x in bf16. First the time steps and decays of `chunks` chunks; then products on tensor cores. `outputs`: y and
// final states, else the segments' states for the carries.
void ssd_scan_scalars(cudaStream_t stream, const Ssd<bf16>& a, int64_t chunks);
void ssd_scan_tiles(cudaStream_t stream, const Ssd<bf16>& a, int64_t segments, bool outputs);

}  // namespace elapid::cuda
