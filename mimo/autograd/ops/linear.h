// Differentiable linear layers, on one rank or on the tp ranks of a module.
#ifndef MIMO_MIMO_AUTOGRAD_OPS_LINEAR_H_
#define MIMO_MIMO_AUTOGRAD_OPS_LINEAR_H_

#include <cstdint>

#include "comm/base/communicator.h"
#include "kernels/activation/bias_activation.h"
#include "mimo/autograd/tape.h"
#include "mimo/nn/parameter.h"

namespace mimo {

// How the tp ranks share a linear layer's product; F and H are one rank's part:
//   column  each has some outputs, weight [F/tp, H]. The gradients of x that
//           come from these are summed.
//   row     each has some inputs, weight [F, H/tp]. The outputs are summed.
// With `tokens`, what the ranks have whole between such layers (a column's x, a
// row's y) they have token-sharded (collectives.h) instead: gathered before the
// product, and reduced to the rank's tokens behind it.
// Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3; Korthikanti et al.
// 2022, arXiv:2205.05198, section 4.2.2.
struct LinearSplit {
  enum Kind { kWhole, kColumn, kRow } kind = kWhole;
  Communicator* tp = nullptr;  // null: kWhole
  bool tokens = false;
};

// y = act(x w^T + b).  x [T, H], weight [F, H], bias [F] or null -> [T, F]
// A row-split layer has no activation. A weight with a quantization is
// multiplied in 8 bits, H and F multiples of 16. Of tp ranks each scales what
// it multiplies: its part of the weight, and of x or of the gradient where
// these are split.
Var Linear(const Context& ctx, const Var& x, Parameter& weight, Parameter* bias,
           Activation activation = Activation::kIdentity,
           const LinearSplit& split = {});

// Linear's record alone, for a checkpoint's second run: what the backward needs
// is the input; nothing is computed and the value is undefined.
Var RecordLinear(const Context& ctx, const Var& x, Parameter& weight,
                 Parameter* bias, const LinearSplit& split = {});

}  // namespace mimo

#endif  // MIMO_MIMO_AUTOGRAD_OPS_LINEAR_H_
