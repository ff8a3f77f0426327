// Differentiable self-attention on a fused projection, and the gated
// activation.
#ifndef MIMO_MIMO_AUTOGRAD_OPS_ATTENTION_H_
#define MIMO_MIMO_AUTOGRAD_OPS_ATTENTION_H_

#include "kernels/attention/attention.h"
#include "mimo/autograd/tape.h"

namespace mimo {

// qkv [B*S, (N + 2G) D]: query, key, value heads -> [B*S, N*D].
// shape.seq_q = shape.seq_k = S. key_lengths [B] int32, or undefined: no
// padding.
Var Attention(const Context& ctx, const Var& qkv,
              const kernels::AttentionShape& shape, const Tensor& key_lengths);

// x [T, 2F] gate then up -> silu(gate) * up [T, F]
Var SiluGate(const Context& ctx, const Var& x);

}  // namespace mimo

#endif  // MIMO_MIMO_AUTOGRAD_OPS_ATTENTION_H_
