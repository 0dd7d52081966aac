#include "elapid/ops/ssd_scan/ssd_scan.h"

#include "elapid/ops/sequences.h"

namespace elapid {

Tensor ssd_scan(Context& ctx, const SsdScan& in, const Batch& batch, const Tensor& state) {
  const int64_t tokens = in.x.rows(), heads = in.dt.cols(), width = in.x.cols(), groups = in.groups;
  for (const Tensor& t : {in.x, in.dt, in.B, in.C, in.A}) {
    require(t && t.dtype == DType::f32, "ssd_scan: x, dt, B, C and A must be f32, got ", name_of(t.dtype));
  }
  require(heads >= 1 && width % heads == 0, "ssd_scan: heads must divide the columns of x, ", width, ", got ", heads);
  require(groups >= 1 && heads % groups == 0, "ssd_scan: groups must divide heads, ", heads, ", got ", groups);
  require(in.B.cols() % groups == 0 && in.B.cols() == in.C.cols(),
          "ssd_scan: B and C must have groups · d_state columns, got ", in.B.cols(), " and ", in.C.cols());
  for (const Tensor& t : {in.dt, in.B, in.C}) {
    require(t.rows() == tokens, "ssd_scan: dt, B and C must have ", tokens, " rows, got ", t.rows());
  }
  require(in.A.size() == heads, "ssd_scan: A must have ", heads, " elements, got ", in.A.size());
  require(!in.D || in.D.size() == heads || in.D.size() == width, "ssd_scan: D must have ", heads, " or ", width,
          " elements, got ", in.D.size());
  require(!in.dt_bias || in.dt_bias.size() == heads, "ssd_scan: dt_bias must have ", heads, " elements, got ",
          in.dt_bias.size());
  const int64_t head_dim = width / heads, d_state = in.B.cols() / groups;
  check_sequences("ssd_scan", batch, tokens, state, {heads, head_dim, d_state}, StateTypes::f32_or_bf16);

  const Tensor y = ctx.arena.alloc({tokens, width}, DType::f32);
  const Arena::Scope scope(ctx.arena);
  const int64_t sequences = batch.sequence_count();
  const Tensor chunk_begin = ctx.arena.alloc({sequences + 1}, DType::i64);
  int64_t chunks = 0;
  for (int64_t s = 0; s < sequences; ++s) {
    chunk_begin.ptr<int64_t>()[s] = chunks;
    const int64_t length = batch.offsets.ptr<int64_t>()[s + 1] - batch.offsets.ptr<int64_t>()[s];
    if (length > 1) chunks += (length + kSsdChunk - 1) / kSsdChunk;
  }
  chunk_begin.ptr<int64_t>()[sequences] = chunks;
  const Tensor shared = ctx.arena.alloc({chunks * groups, ssd_chunk_floats(d_state, in.arithmetic)}, DType::f32);
  const Tensor scratch =
      ctx.arena.alloc({ctx.threads.size(), ssd_scratch_floats(head_dim, d_state, in.arithmetic)}, DType::f32);
  launch(ctx,
         SsdScanForward{in, y, batch.offsets, batch.slots, state, chunk_begin, shared, scratch, head_dim, d_state});
  return y;
}

}  // namespace elapid
