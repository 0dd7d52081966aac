#include "elapid/ops/selective_scan/selective_scan.h"

#include "elapid/ops/sequences.h"

namespace elapid {

Tensor selective_scan(Context& ctx, const SelectiveScan& in, const Batch& batch, const Tensor& state) {
  const int64_t tokens = in.x.rows(), channels = in.x.cols(), groups = in.groups;
  for (const Tensor& t : {in.x, in.dt, in.B, in.C, in.A}) {
    require(t && t.dtype == DType::f32, "selective_scan: x, dt, B, C and A must be f32, got ", name_of(t.dtype));
  }
  require(groups >= 1 && channels % groups == 0, "selective_scan: groups must divide channels, ", channels, ", got ",
          groups);
  require(in.B.cols() % groups == 0 && in.B.cols() == in.C.cols(),
          "selective_scan: B and C must have groups · d_state columns, got ", in.B.cols(), " and ", in.C.cols());
  for (const Tensor& t : {in.dt, in.z}) {
    require(!t || (t.dtype == DType::f32 && t.rows() == tokens && t.cols() == channels),
            "selective_scan: dt and z must be f32 [", tokens, ", ", channels, "], got ", name_of(t.dtype), " [",
            t.rows(), ", ", t.cols(), "]");
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
  check_sequences("selective_scan", batch, tokens, state, {channels, d_state}, StateTypes::f32_or_bf16);

  const Tensor y = ctx.arena.alloc({tokens, channels}, DType::f32);
  const Arena::Scope scope(ctx.arena);
  const Tensor scratch = ctx.arena.alloc({ctx.threads.size(), selective_scan_scratch_floats(d_state)}, DType::f32);
  launch(ctx, SelectiveScanForward{in, y, batch.offsets, batch.slots, state, scratch, d_state});
  return y;
}

}  // namespace elapid
