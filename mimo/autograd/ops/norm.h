// Differentiable norms, with the residual add before them fused in.
#ifndef MIMO_MIMO_AUTOGRAD_OPS_NORM_H_
#define MIMO_MIMO_AUTOGRAD_OPS_NORM_H_

#include "mimo/autograd/tape.h"
#include "mimo/nn/parameter.h"

namespace mimo {

struct NormOutput {
  Var sum;         // [T, H] x + residual: the residual stream goes on from here
  Var normalized;  // [T, H]
};

// Norms x + residual; `residual` may be undefined, then sum is x.
// x, residual [T, H]; weight, bias [H]. bias null: RMS norm, else layer norm.
NormOutput AddNorm(const Context& ctx, const Var& x, const Var& residual,
                   Parameter& weight, Parameter* bias, double eps);

// x + y, shapes equal.
Var Add(const Context& ctx, const Var& x, const Var& y);

}  // namespace mimo

#endif  // MIMO_MIMO_AUTOGRAD_OPS_NORM_H_
