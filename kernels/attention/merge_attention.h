// MergeAttention: attention over keys a and keys b, from that over each. Adds b
// to a, with out and lse of kernels/attention/attention.h:
//   lse  <- log(exp(lse) + exp(lse_b))
//   out  <- exp(lse_before - lse) out + exp(lse_b - lse) out_b
// out is in the accumulator dtype, so many parts lose nothing. A query that
// sees no key has lse = -inf.
// Source: Liu et al. 2023 (ring attention), arXiv:2310.01889, section 3.
// Bytes (the floor): T*N*D*(2*accumulator size + size).
#ifndef MIMO_KERNELS_ATTENTION_MERGE_ATTENTION_H_
#define MIMO_KERNELS_ATTENTION_MERGE_ATTENTION_H_

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/op.h"
#include "kernels/base/stream.h"

namespace mimo::kernels {

struct MergeAttentionArgs {
  void* out;           // [T, N*D] accumulator dtype
  void* lse;           // [B, N, S] accumulator dtype
  const void* out_b;   // [T, N*D] dtype
  const void* lse_b;   // [B, N, S] accumulator dtype
  bool first = false;  // out and lse hold nothing yet: b is copied
  int64_t batch, seq, heads, head_dim;  // B, S, N, D; T = B*S
  // [B+1]; samples as in AttentionForward: S is the longest's. Null: not
  // packed.
  const int32_t* cu_seqlens = nullptr;
  DType dtype;
};
MIMO_OP(MergeAttention, MergeAttentionArgs);

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_ATTENTION_MERGE_ATTENTION_H_
