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

}  // namespace mimo

#endif  // MIMO_MIMO_AUTOGRAD_OPS_LINEAR_H_
