// AdamW over many tensors in one call, after ClipFactor. If the norm is not
// finite only ++skipped; else ++steps and, of every element,
//   g = grad * grad_scale
//   m = beta1 m + (1-beta1) g,   v = beta2 v + (1-beta2) g^2
//   p = p (1 - lr wd) - lr (m / (1-beta1^steps)) /
//                          (sqrt(v / (1-beta2^steps)) + eps)
// p is the master; a parameter that has one becomes p rounded.
// Source: Loshchilov & Hutter 2017, arXiv:1711.05101, algorithm 2 (decay scaled
// by lr alone). Bytes (the floor) a parameter: float32 28, bfloat16 30.
#ifndef MIMO_KERNELS_OPTIM_ADAMW_H_
#define MIMO_KERNELS_OPTIM_ADAMW_H_

#include "kernels/base/op.h"
#include "kernels/base/stream.h"
#include "kernels/optim/tensor_list.h"

namespace mimo::kernels {

struct AdamWArgs {
  const TensorList* tensors;
  double beta1, beta2, eps;
  AdamWControl* control;  // [1]
};
MIMO_OP(AdamW, AdamWArgs);

// master = param, where there is one.
struct SetMastersArgs {
  const TensorList* tensors;
};
MIMO_OP(SetMasters, SetMastersArgs);

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_OPTIM_ADAMW_H_
