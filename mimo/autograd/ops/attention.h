// Differentiable self-attention on a fused projection, and the gated
// activation.
#ifndef MIMO_MIMO_AUTOGRAD_OPS_ATTENTION_H_
#define MIMO_MIMO_AUTOGRAD_OPS_ATTENTION_H_

#include <cstdint>

#include "kernels/attention/attention.h"
#include "mimo/autograd/tape.h"

namespace mimo {

// Angles of the rotary embedding, and where each sequence begins.
struct Rotary {
  Tensor cos, sin;  // [max_position, D/2] accumulator dtype
  int64_t seq;      // tokens of a sequence
  int64_t first_position;
};

// Samples of different lengths, one behind another. Undefined: all of one.
struct Packing {
  Tensor cu_seqlens;  // [B+1] int32: sample b is rows [b] to [b+1]
  Tensor positions;   // [T] int32: each row's place in its sample
  bool defined() const { return positions.defined(); }
};

// Turns the first `heads` heads of each row of qkv, in place, or back. Where
// there are `positions` [T] int32, they are in place of seq, first_position.
void ApplyRotary(const Context& ctx, const Tensor& qkv, const Rotary& rotary,
                 int64_t heads, int64_t head_dim,
                 const Tensor& positions = Tensor(), bool inverse = false);

// qkv [T, (N + 2G) D]: query, key, value heads -> [T, N*D], with the rotary
// embedding on queries and keys if there is one: qkv, which nobody else may
// have read, is turned in place. shape.seq_q = shape.seq_k = S, T = B*S;
// packed, S is the longest sample's. Rows behind the T are padding
// (collectives.h): the result has them too, zeros.
Var Attention(const Context& ctx, const Var& qkv,
              const kernels::AttentionShape& shape,
              const Rotary* rotary = nullptr, const Packing& packing = {});

// x [T, 2F] gate then up -> silu(gate) * up [T, F]
Var SiluGate(const Context& ctx, const Var& x);

}  // namespace mimo

#endif  // MIMO_MIMO_AUTOGRAD_OPS_ATTENTION_H_
