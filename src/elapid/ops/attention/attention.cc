#include "elapid/ops/attention/attention.h"

#include "elapid/ops/sequences.h"

#include <algorithm>

namespace elapid {
namespace {

// Everything a caller can get wrong. Returns head_dim.
int64_t check(const Context& ctx, const AttentionInputs& in, const Batch& batch, const KvCache& cache) {
  for (const Tensor& t : {in.q, in.k, in.v}) {
    require(t && takes_activations(ctx, t.dtype) && t.dtype == in.q.dtype && t.shape.rank == 2,
            "attention: q, k and v must be matrices of f32 (on CUDA also bf16), got ", name_of(t.dtype), " of rank ",
            t.shape.rank);
    require(t.rows() == in.q.rows(), "attention: k and v must have as many rows as q, ", in.q.rows(), ", got ",
            t.rows());
  }
  require(in.heads >= 1 && in.kv_heads >= 1 && in.heads % in.kv_heads == 0, "attention: kv_heads must divide heads, ",
          in.heads, ", got ", in.kv_heads);
  require(in.q.cols() % in.heads == 0 && in.q.cols() >= in.heads, "attention: heads must divide the columns of q, ",
          in.q.cols(), ", got ", in.heads);
  const int64_t head_dim = in.q.cols() / in.heads, width = in.kv_heads * head_dim;
  require(in.k.cols() == width && in.v.cols() == width, "attention: k and v must have kv_heads · head_dim columns, ",
          width, ", got ", in.k.cols(), " and ", in.v.cols());
  for (const Tensor& t : {cache.keys, cache.values}) {
    require(static_cast<bool>(t) == static_cast<bool>(cache.page_table),
            "attention: keys, values and page table must come together, got some of them");
    require(!t || (t.dtype == DType::f32 && t.dense() && t.shape == Shape(cache.keys.shape[0], kPageTokens, width)),
            "attention: keys and values must be dense f32 [pages, ", kPageTokens, ", ", width, "], got ",
            name_of(t.dtype), " with ", t.cols(), " columns");
  }
  const Tensor& table = cache.page_table;
  require(!table || (table.dtype == DType::i32 && table.shape.rank == 2),
          "attention: page table must be a matrix of i32, got ", name_of(table.dtype), " of rank ", table.shape.rank);
  check_sequences("attention", batch, in.q.rows(), table ? table.rows() : 0);
  check_past("attention", batch);
  for (int64_t s = 0; s < batch.sequence_count(); ++s) {
    const int64_t slot = batch.slots.ptr<int64_t>()[s];
    const int64_t length = batch.offsets.ptr<int64_t>()[s + 1] - batch.offsets.ptr<int64_t>()[s];
    if (slot == kNoSlot || length == 0) continue;
    const int64_t blocks = (batch.past.ptr<int64_t>()[s] + length + kPageTokens - 1) / kPageTokens;
    require(blocks <= table.cols(), "attention: the page table must have ", blocks, " pages for slot ", slot, ", got ",
            table.cols());
    for (int64_t b = 0; b < blocks; ++b) {
      const int32_t page = table.row<int32_t>(slot)[b];
      require(page >= 0 && page < cache.keys.shape[0], "attention: pages must be 0 to ", cache.keys.shape[0] - 1,
              ", got ", page, " for slot ", slot);
    }
  }
  return head_dim;
}

}  // namespace

Tensor attention(Context& ctx, const AttentionInputs& in, const Batch& batch, const KvCache& cache) {
  const int64_t head_dim = check(ctx, in, batch, cache), group = in.heads / in.kv_heads;
  const Tensor y = ctx.arena.alloc({in.q.rows(), in.q.cols()}, in.q.dtype);
  const Arena::Scope scope(ctx.arena);
  const bool cuda = on_cuda(ctx.device);
  require(!cuda || (head_dim <= kMostHeadDim && group <= kCudaQueryRows), "attention: on CUDA heads must be at most ",
          kMostHeadDim, " wide and ", kCudaQueryRows, " for one of keys, got ", head_dim, " and ", group);
  const int64_t sequences = batch.sequence_count();
  const int64_t query_tokens = std::max<int64_t>(1, (cuda ? kCudaQueryRows : kQueryRows) / group);
  const auto sums = [&] { return host_table(ctx, {sequences + 1}, DType::i64); };
  const Tensor tasks = sums(), partial = sums(), merges = sums(), query_tasks = cuda ? sums() : Tensor();
  int64_t task = 0, row = 0, merge = 0, floats = 0, query_task = 0;
  for (int64_t s = 0; s < sequences; ++s) {
    tasks.ptr<int64_t>()[s] = task;
    partial.ptr<int64_t>()[s] = row;
    merges.ptr<int64_t>()[s] = merge;
    if (cuda) query_tasks.ptr<int64_t>()[s] = query_task;
    const int64_t length = batch.offsets.ptr<int64_t>()[s + 1] - batch.offsets.ptr<int64_t>()[s];
    if (length == 0) continue;
    if (length * group <= kFewQueryRows) {
      const int64_t past = batch.past ? batch.past.ptr<int64_t>()[s] : 0;
      const int64_t blocks = (past + length + kPageTokens - 1) / kPageTokens;
      task += cuda ? blocks * in.kv_heads : blocks;
      row += blocks * length * in.heads;
      merge += length * in.heads;
      const int64_t heads = attention_heads_a_pass(in.kv_heads, head_dim);
      floats = std::max(floats, attention_scratch_floats(heads, length * group, head_dim));
    } else if (cuda) {
      query_task += in.kv_heads * ((length + query_tokens - 1) / query_tokens);
    } else {
      task += in.kv_heads * ((length + query_tokens - 1) / query_tokens);
      const int64_t rows = std::min(length, query_tokens) * group;
      // Weights of a tile alone, but outputs with their m and l.
      floats =
          std::max(floats, attention_scratch_floats(1, 16, head_dim) + rows * (2 * attention_padded(head_dim) + 2));
    }
  }
  tasks.ptr<int64_t>()[sequences] = task;
  partial.ptr<int64_t>()[sequences] = row;
  merges.ptr<int64_t>()[sequences] = merge;
  const Tensor partials = ctx.arena.alloc({row, attention_padded(head_dim) + 16}, DType::f32);
  const Tensor scratch = ctx.arena.alloc({ctx.threads.size(), cuda ? 0 : floats}, DType::f32);
  const BatchArrays arrays = arrays_of(ctx, batch);
  AttentionForward forward{in,
                           cache,
                           arrays.offsets,
                           arrays.slots,
                           arrays.past,
                           y,
                           upload(ctx, tasks),
                           upload(ctx, partial),
                           upload(ctx, merges),
                           partials,
                           scratch,
                           head_dim,
                           query_tokens};
  if (cuda) {
    query_tasks.ptr<int64_t>()[sequences] = query_task;
    forward.query_tasks = upload(ctx, query_tasks);
    forward.cache.page_table = cache.uploaded_table ? cache.uploaded_table : upload_values(ctx, cache.page_table);
    forward.few = task;
    forward.many = query_task;
    forward.merge_rows = merge;
  }
  launch(ctx, forward);
  return y;
}

Tensor attention_weights(Context& ctx, const AttentionInputs& in, const Batch& batch, const KvCache& cache,
                         int64_t sequence) {
  const int64_t head_dim = check(ctx, in, batch, cache);
  require(sequence >= 0 && sequence < batch.sequence_count(), "attention: sequence must be 0 to ",
          batch.sequence_count() - 1, ", got ", sequence);
  const int64_t begin = batch.offsets.ptr<int64_t>()[sequence];
  const int64_t tokens = batch.offsets.ptr<int64_t>()[sequence + 1] - begin;
  const int64_t past = batch.past ? batch.past.ptr<int64_t>()[sequence] : 0;
  const Tensor weights = ctx.arena.alloc({in.heads, tokens, past + tokens}, DType::f32);
  const Arena::Scope scope(ctx.arena);
  KvCache read = cache;
  read.page_table = cache.uploaded_table ? cache.uploaded_table : upload_values(ctx, cache.page_table);
  launch(ctx, AttentionWeights{in, read, begin, tokens, batch.slots.ptr<int64_t>()[sequence], past, head_dim, weights});
  return weights;
}

}  // namespace elapid
