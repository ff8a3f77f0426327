// Softmax attention: grouped-query, causal or full, with key padding.
//   g(n)      = n / (N/G)                                    group of head n
//   z[i,j]    = scale * q[i,n,:] . k[j,g(n),:]    -inf where j is hidden from i
//   lse[n,i]  = log sum_j exp(z[i,j])
//   p[i,j]    = exp(z[i,j] - lse[n,i])
//   o[i,n,:]  = sum_j p[i,j] v[j,g(n),:]
//   delta[i]  = do[i,n,:] . o[i,n,:]
//   dz[i,j]   = p[i,j] * (do[i,n,:] . v[j,g(n),:] - delta[i])
//   dq = scale sum_j dz k,  dk = scale sum_i,n dz q,  dv = sum_i,n p do
// Key j of sample b is hidden from query i when j >= key_lengths[b], or when
// causal and j > i + Sk - Sq (queries are the last Sq positions: the KV cache's
// rule). A query that sees no key gets o = 0, lse = -inf and no gradient. What
// padding holds does not matter, but it is finite.
// Never holds an Sq x Sk matrix: blocks of both with an online softmax.
// Packed samples of different lengths: with cu_seqlens, sample b's tokens are
// rows cu_seqlens[b] to cu_seqlens[b+1] of q, k, v and out, and Sq = Sk is the
// longest's; what lse [B, N, Sq] has behind a sample's rows is unset.
// Source: Dao 2023, arXiv:2307.08691, algorithms 1 and 2; grouped queries:
// Ainslie et al. 2023, arXiv:2305.13245.
// q, k, v and their gradients are column ranges of wider rows (one fused
// projection): each has a stride, the elements from a token to the next.
// Flops (the floor): forward 4*B*N*Sq*Sk*D, backward 2.5 times that; half if
// causal and Sq = Sk.
#ifndef MIMO_KERNELS_ATTENTION_ATTENTION_H_
#define MIMO_KERNELS_ATTENTION_ATTENTION_H_

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/op.h"
#include "kernels/base/stream.h"

namespace mimo::kernels {

struct AttentionShape {
  int64_t batch;            // B
  int64_t seq_q, seq_k;     // Sq, Sk: tokens of a sample
  int64_t heads, kv_heads;  // N, G; G divides N
  int64_t head_dim;         // D
  bool causal;
  double scale;  // 1 / sqrt(D) as a rule
};

struct AttentionForwardArgs {
  AttentionShape shape;
  const void* q;  // [B*Sq, q_stride]  dtype; head n at column n*D
  const void* k;  // [B*Sk, kv_stride] dtype; group g at column g*D
  const void* v;  // [B*Sk, kv_stride] dtype
  int64_t q_stride, kv_stride;
  // Elements from a sample's first key to the next sample's; 0: Sk * kv_stride.
  // A KV cache is longer than the keys it holds.
  int64_t kv_batch_stride = 0;
  const int32_t* key_lengths = nullptr;  // [B]; null: all Sk keys are real
  const int32_t* cu_seqlens = nullptr;   // [B+1]; null: not packed
  void* out;                             // [B*Sq, N*D] dtype
  void* lse;                             // [B, N, Sq] accumulator dtype
  DType dtype;
};
MIMO_OP(AttentionForward, AttentionForwardArgs);

struct AttentionBackwardArgs {
  AttentionShape shape;
  const void *q, *k, *v;  // as in the forward
  int64_t q_stride, kv_stride;
  const int32_t* key_lengths = nullptr;
  const int32_t* cu_seqlens = nullptr;
  const void* out;   // [B*Sq, N*D] dtype
  const void* lse;   // [B, N, Sq]  accumulator dtype
  const void* dout;  // [B*Sq, N*D] dtype
  void* dq;          // [B*Sq, dq_stride]  dtype, written, not accumulated
  void* dk;          // [B*Sk, dkv_stride] dtype, written
  void* dv;          // [B*Sk, dkv_stride] dtype, written
  int64_t dq_stride, dkv_stride;
  // If q and k came out of a rotary embedding (kernels/rotary) at positions 0
  // to S-1 of every sample: its tables, [at least S, D/2] accumulator dtype,
  // and dq and dk are of what went into it. Not for packed samples; Sq = Sk.
  const void* cos = nullptr;
  const void* sin = nullptr;
  void* workspace;  // AttentionBackwardWorkspaceBytes(...) bytes
  DType dtype;
};
MIMO_OP(AttentionBackward, AttentionBackwardArgs);

int64_t AttentionBackwardWorkspaceBytesCuda(const AttentionShape& shape,
                                            DType dtype);
inline int64_t AttentionBackwardWorkspaceBytes(const AttentionShape& shape,
                                               DType dtype, Device device) {
  if (device == Device::kCpu) return 0;
  MIMO_ON_CUDA(AttentionBackwardWorkspaceBytesCuda(shape, dtype));
}

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_ATTENTION_ATTENTION_H_
