#include "elapid/ops/ssd_scan/ssd_scan.h"

#include "elapid/ops/sequences.h"

namespace elapid {
namespace {

// Tables and scratch of the CUDA form.
void add_segments(const Context& ctx, const Batch& batch, SsdScanForward& a) {
  const int64_t sequences = batch.sequence_count(), heads = a.in.dt.cols();
  const auto sums = [&] { return host_table(ctx, {sequences + 1}, DType::i64); };
  const Tensor segments = sums(), carries = sums(), chunks = sums();
  const int64_t* offsets = batch.offsets.ptr<int64_t>();
  int64_t segment = 0, carry = 0, chunk = 0;
  for (int64_t s = 0; s < sequences; ++s) {
    segments.ptr<int64_t>()[s] = segment;
    carries.ptr<int64_t>()[s] = carry;
    chunks.ptr<int64_t>()[s] = chunk;
    const int64_t length = offsets[s + 1] - offsets[s];
    if (length == 1) ++a.singles;
    if (length < 2) continue;
    const int64_t own = (length + ssd_segment(length) - 1) / ssd_segment(length);
    segment += own;
    carry += own - 1;
    chunk += (length + kSsdChunk - 1) / kSsdChunk;
  }
  segments.ptr<int64_t>()[sequences] = a.segments = segment;
  carries.ptr<int64_t>()[sequences] = carry;
  chunks.ptr<int64_t>()[sequences] = chunk;
  // One token each is what decoding does, and needs no table.
  if (segment == 0) return;
  a.segment_begin = upload(ctx, segments);
  a.carry_begin = upload(ctx, carries);
  a.carries = ctx.arena.alloc({carry, heads, a.head_dim, a.d_state}, DType::f32);
  a.carry_decay = ctx.arena.alloc({carry, heads}, DType::f32);
  if (a.in.x.dtype == DType::f32) return;
  a.chunk_begin = upload(ctx, chunks);
  a.chunks = ctx.arena.alloc({chunk, heads, kSsdScalars * kSsdChunk}, DType::f32);
}

}  // namespace

Tensor ssd_scan(Context& ctx, const SsdScan& in, const Batch& batch, const Tensor& state) {
  const int64_t tokens = in.x.rows(), heads = in.dt.cols(), width = in.x.cols(), groups = in.groups;
  require(in.x && takes_activations(ctx, in.x.dtype), "ssd_scan: x must be f32 (on CUDA also bf16), got ",
          name_of(in.x.dtype));
  for (const Tensor& t : {in.dt, in.B, in.C}) {
    require(t && t.dtype == in.x.dtype, "ssd_scan: dt, B and C must be of x's type, ", name_of(in.x.dtype), ", got ",
            name_of(t.dtype));
  }
  require(in.A && in.A.dtype == DType::f32, "ssd_scan: A must be f32, got ", name_of(in.A.dtype));
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
  if (state && state.dtype == DType::bf16 && batch.past) check_past("ssd_scan", batch);

  const Tensor y = ctx.arena.alloc({tokens, width}, in.x.dtype);
  const Arena::Scope scope(ctx.arena);
  const int64_t sequences = batch.sequence_count();
  const BatchArrays arrays = arrays_of(ctx, batch);
  SsdScanForward forward{in, y, arrays.offsets, arrays.slots, state, {}, {}, {}, head_dim, d_state};
  if (on_cuda(ctx.device)) {
    require(d_state <= kMostSsdStates, "ssd_scan: d_state must be at most ", kMostSsdStates, " on CUDA, got ", d_state);
    add_segments(ctx, batch, forward);
    launch(ctx, forward);
    return y;
  }
  forward.past = batch.past;
  forward.chunk_begin = ctx.arena.alloc({sequences + 1}, DType::i64);
  int64_t chunks = 0;
  for (int64_t s = 0; s < sequences; ++s) {
    forward.chunk_begin.ptr<int64_t>()[s] = chunks;
    const int64_t length = batch.offsets.ptr<int64_t>()[s + 1] - batch.offsets.ptr<int64_t>()[s];
    if (length > 1) chunks += (length + kSsdChunk - 1) / kSsdChunk;
  }
  forward.chunk_begin.ptr<int64_t>()[sequences] = chunks;
  forward.chunks = ctx.arena.alloc({chunks * groups, ssd_chunk_floats(d_state, in.arithmetic)}, DType::f32);
  forward.scratch =
      ctx.arena.alloc({ctx.threads.size(), ssd_scratch_floats(head_dim, d_state, in.arithmetic)}, DType::f32);
  launch(ctx, forward);
  return y;
}

}  // namespace elapid
