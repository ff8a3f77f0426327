// TurnBack: the rotary embedding's backward on dq and dk, of what an attention
// backward that did not do it itself has written.
#ifndef MIMO_KERNELS_ATTENTION_TURN_BACK_H_
#define MIMO_KERNELS_ATTENTION_TURN_BACK_H_

#include "absl/log/check.h"
#include "kernels/attention/attention.h"
#include "kernels/rotary/rotary.h"

namespace mimo::kernels {

inline void TurnBack(const AttentionBackwardArgs& args, Stream stream) {
  if (args.cos == nullptr) return;
  const AttentionShape& s = args.shape;
  CHECK(args.cu_seqlens == nullptr && s.seq_q == s.seq_k);
  const auto turn = [&](void* x, int64_t heads, int64_t stride) {
    Rotary({.x = x,
            .cos = args.cos,
            .sin = args.sin,
            .seq = s.seq_q,
            .tokens = s.batch * s.seq_q,
            .heads = heads,
            .head_dim = s.head_dim,
            .stride = stride,
            .max_position = s.seq_q,
            .inverse = true,
            .dtype = args.dtype},
           stream);
  };
  turn(args.dq, s.heads, args.dq_stride);
  turn(args.dk, s.kv_heads, args.dkv_stride);
}

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_ATTENTION_TURN_BACK_H_
