// Differentiable linear layers.
#ifndef MIMO_MIMO_AUTOGRAD_OPS_LINEAR_H_
#define MIMO_MIMO_AUTOGRAD_OPS_LINEAR_H_

#include <cstdint>

#include "kernels/activation/bias_activation.h"
#include "mimo/autograd/tape.h"
#include "mimo/nn/parameter.h"

namespace mimo {

// y = act(x w^T + b).  x [T, H], weight [F, H], bias [F] or null -> [T, F]
Var Linear(const Context& ctx, const Var& x, Parameter& weight, Parameter* bias,
           Activation activation = Activation::kIdentity);

// Linear's record alone, for a checkpoint's second run: what the backward needs
// is the input; nothing is computed and the value is undefined.
Var RecordLinear(const Context& ctx, const Var& x, Parameter& weight,
                 Parameter* bias);

// Angles of the rotary embedding, and where each sequence begins.
struct Rotary {
  Tensor cos, sin;  // [max_position, D/2] accumulator dtype
  int64_t seq;      // tokens of a sequence
  int64_t first_position;
};

// The fused projection of attention: Linear, then the rotary embedding on the
// query and key heads when `rotary` is given.
// x [T, H] -> [T, (N + 2G) D]: N query heads, G key heads, G value heads.
Var QkvLinear(const Context& ctx, const Var& x, Parameter& weight,
              Parameter* bias, const Rotary* rotary, int64_t heads,
              int64_t kv_heads, int64_t head_dim);

}  // namespace mimo

#endif  // MIMO_MIMO_AUTOGRAD_OPS_LINEAR_H_
