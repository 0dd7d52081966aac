#pragma once

// Causal attention of ragged sequences over keys and values in pages:
//   y[t, h] = Σ_j w[j] · v[j, g],  w = softmax_j(scale · q[t, h] · k[j, g]),  j = 0 … past + t,  g = h / (heads /
//   kv_heads)
// where keys and values before the call's come from the sequence's pages; the call's own are written there.
//
// Keys are taken in blocks of kPageTokens, cut at the sequence's own multiples. A block gives a row its largest score
// m, l = Σ exp(s − m) and o = Σ exp(s − m) · v; blocks are merged in order ("online softmax": Milakov & Gimelshein
// 2018, arXiv 1805.02867; Dao et al. 2022, arXiv 2205.14135), so nothing is quadratic in memory. What a block gives
// depends on the row, its keys and their order alone, and so do the merges: a row is the same bits alone or in any
// batch, in one call or in pieces, computed by one thread or with its blocks spread over many.

// On CUDA the same holds of f32. There q, k, v and y may be bf16; for those, sequences of many rows go through tensor
// cores, which see keys, values and weights as bf16.

#include "elapid/core/batch.h"
#include "elapid/core/kernel.h"

namespace elapid {

struct AttentionInputs {
  Tensor q;     // [T, heads · head_dim] f32 or on CUDA bf16, positions applied
  Tensor k, v;  // [T, kv_heads · head_dim], of the same type
  int64_t heads = 1, kv_heads = 1;
  float scale = 1;
};

// A layer's memory; all empty when no sequence has a slot.
struct KvCache {
  Tensor keys, values;      // [pages, kPageTokens, kv_heads · head_dim] f32
  Tensor page_table;        // [slots, n] i32, in host memory: the page of tokens 64 p … of a slot
  Tensor uploaded_table{};  // on CUDA the same in the device's memory; operators that find none make a copy
};

// batch.past says how many tokens of each sequence are in the cache already. Returns y [T, heads · head_dim] of q's
// type.
Tensor attention(Context& ctx, const AttentionInputs& in, const Batch& batch, const KvCache& cache);

// The weights w of one sequence of the batch: [heads, tokens, past + tokens] f32, zero where a token does not look.
// To look at, not to compute with: quadratic in memory.
Tensor attention_weights(Context& ctx, const AttentionInputs& in, const Batch& batch, const KvCache& cache,
                         int64_t sequence);

struct AttentionForward {
  AttentionInputs in;
  KvCache cache;
  Tensor offsets, slots, past;  // as in Batch
  Tensor y;
  // A sequence of few query rows is cut into key blocks, whose results go to `partials` and are merged afterwards; a
  // longer one into (kv head, query block), which merges as it goes. All [S+1] i64, running sums:
  Tensor tasks;     // key blocks or query blocks · kv_heads
  Tensor partial;   // first row of `partials`: key blocks · kv_heads · query rows of sequences of the first kind
  Tensor merges;    // kv_heads · query rows of sequences of the first kind
  Tensor partials;  // scratch [rows, 16 + head_dim, rounded up]: m and l; o
  Tensor scratch;   // [threads, attention_scratch_floats()]
  int64_t head_dim, query_tokens;
  // On CUDA `tasks` counts key blocks · kv_heads of sequences of few rows alone, `query_tasks` what the others are cut
  // into.
  Tensor query_tasks{};                       // [S+1] i64
  int64_t few = 0, many = 0, merge_rows = 0;  // tasks of either kind, and rows to be merged
};
ELAPID_KERNEL(AttentionForward)
ELAPID_CUDA_KERNEL(AttentionForward)

struct AttentionWeights {
  AttentionInputs in;
  KvCache cache;
  int64_t begin, tokens, slot, past, head_dim;  // of the sequence
  Tensor weights;
};
ELAPID_KERNEL(AttentionWeights)
ELAPID_CUDA_KERNEL(AttentionWeights)

// Query rows (tokens · heads of a group) up to which a sequence is cut by keys: decoding streams the cache, and what is
// written per block stays small beside what is read.
inline constexpr int64_t kFewQueryRows = 16;
// Query rows of a block: enough to make little of transposing keys, few enough to stay in the second-level cache.
inline constexpr int64_t kQueryRows = 256;

// On CUDA: query rows of a block, and the widest head.
inline constexpr int64_t kCudaQueryRows = 64, kMostHeadDim = 256;

ELAPID_INLINE constexpr int64_t attention_padded(int64_t n) { return (n + 15) / 16 * 16; }
// Heads of keys that a block of a sequence of few rows takes at a time: 4 KiB of a row, or one head.
ELAPID_INLINE constexpr int64_t attention_heads_a_pass(int64_t kv_heads, int64_t head_dim) {
  const int64_t heads = 1024 / head_dim;
  return heads < 1 ? 1 : heads < kv_heads ? heads : kv_heads;
}
// Floats of scratch that one thread needs for a block of keys: transposed, values, weights, queries.
ELAPID_INLINE constexpr int64_t attention_scratch_floats(int64_t heads, int64_t rows, int64_t head_dim) {
  const int64_t padded = attention_padded(head_dim);
  return heads * padded * kPageTokens + kPageTokens * padded + heads * rows * kPageTokens + rows * padded;
}

}  // namespace elapid
