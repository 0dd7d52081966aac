#include "elapid/ops/selective_scan/selective_scan.h"

#include "elapid/ops/sequences.h"

namespace elapid {

Tensor selective_scan(Context& ctx, const SelectiveScan& in, const Batch& batch, const Tensor& state) {
  const int64_t tokens = in.x.rows(), channels = in.x.cols(), groups = in.groups;
  require(in.x && takes_activations(ctx, in.x.dtype), "selective_scan: x must be f32 (on CUDA also bf16), got ",
          name_of(in.x.dtype));
  for (const Tensor& t : {in.dt, in.B, in.C}) {
    require(t && t.dtype == in.x.dtype, "selective_scan: dt, B and C must be of x's type, ", name_of(in.x.dtype),
            ", got ", name_of(t.dtype));
  }
  require(in.A && in.A.dtype == DType::f32, "selective_scan: A must be f32, got ", name_of(in.A.dtype));
  require(groups >= 1 && channels % groups == 0, "selective_scan: groups must divide channels, ", channels, ", got ",
          groups);
  require(in.B.cols() % groups == 0 && in.B.cols() == in.C.cols(),
          "selective_scan: B and C must have groups · d_state columns, got ", in.B.cols(), " and ", in.C.cols());
  for (const Tensor& t : {in.dt, in.z}) {
    require(!t || (t.dtype == in.x.dtype && t.rows() == tokens && t.cols() == channels),
            "selective_scan: dt and z must be ", name_of(in.x.dtype), " [", tokens, ", ", channels, "], got ",
            name_of(t.dtype), " [", t.rows(), ", ", t.cols(), "]");
  }
  for (const Tensor& t : {in.B, in.C}) {
    require(t.rows() == tokens, "selective_scan: B and C must have ", tokens, " rows, got ", t.rows());
  }
  const int64_t d_state = in.B.cols() / groups;
  require(in.A.rows() == channels && in.A.cols() == d_state, "selective_scan: A must be [", channels, ", ", d_state,
          "], got [", in.A.rows(), ", ", in.A.cols(), "]");
  for (const Tensor& t : {in.D, in.dt_bias}) {
    require(!t || (t.dtype == DType::f32 && t.size() == channels), "selective_scan: D and dt_bias must be f32 with ",
            channels, " elements, got ", name_of(t.dtype), " with ", t.size());
  }
  check_sequences("selective_scan", batch, tokens, state, {channels, d_state});

  require(!on_cuda(ctx.device) || d_state <= kMostScanStates, "selective_scan: d_state must be at most ",
          kMostScanStates, " on CUDA, got ", d_state);

  const Tensor y = ctx.arena.alloc({tokens, channels}, in.x.dtype);
  const Arena::Scope scope(ctx.arena);
  const int64_t floats = on_cuda(ctx.device) ? 0 : selective_scan_scratch_floats(d_state);
  const Tensor scratch = ctx.arena.alloc({ctx.threads.size(), floats}, DType::f32);
  const BatchArrays arrays = arrays_of(ctx, batch);
  launch(ctx,
         SelectiveScanForward{in, y, arrays.offsets, arrays.slots, state, scratch, d_state, longest_sequence(batch)});
  return y;
}

}  // namespace elapid
