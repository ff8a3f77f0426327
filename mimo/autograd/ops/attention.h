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
  // [T] int32, in place of these two; undefined: not.
  Tensor positions = {};
};

// Turns the first `heads` heads of each row of qkv, in place, or back.
void ApplyRotary(const Context& ctx, const Tensor& qkv, const Rotary& rotary,
                 int64_t heads, int64_t head_dim, bool inverse = false);

// qkv [B*S, (N + 2G) D]: query, key, value heads -> [B*S, N*D], with the rotary
// embedding on queries and keys if there is one: qkv, which nobody else may
// have read, is turned in place. shape.seq_q = shape.seq_k = S. key_lengths [B]
// int32, or undefined: no padding. Rows behind the B*S are padding
// (collectives.h): the result has them too, zeros.
Var Attention(const Context& ctx, const Var& qkv,
              const kernels::AttentionShape& shape, const Tensor& key_lengths,
              const Rotary* rotary = nullptr);

// x [T, 2F] gate then up -> silu(gate) * up [T, F]
Var SiluGate(const Context& ctx, const Var& x);

}  // namespace mimo

#endif  // MIMO_MIMO_AUTOGRAD_OPS_ATTENTION_H_
