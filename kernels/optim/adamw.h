// AdamW over many tensors in one call, after ClipFactor. If the norm is not
// finite only ++skipped; else ++steps and, of every element,
//   g = grad * grad_scale
//   m = beta1 m + (1-beta1) g,   v = beta2 v + (1-beta2) g^2
//   p = p (1 - lr wd) - lr (m / (1-beta1^steps)) /
//                          (sqrt(v / (1-beta2^steps)) + eps)
// p is the master. A bfloat16 parameter and its remainder are a float32 p, not
// a bit more: the parameter is p rounded to the nearest, ties away from zero,
// and
//   bits of p = 2^16 (bits of the parameter) + remainder
// Ties to even would not do: a remainder of +-2^15 would need a 17th bit.
// m may be kept in bfloat16, rounded to the nearest once p has taken the
// float32 one. Half an ulp is at most 2^-8 of m, far less than the 1-beta1 =
// 0.1 of its way that m goes in a step: it comes to within 2^-8 / (1-beta1) of
// where it goes, and what was rounded off fades. v stays float32: beside
// 1-beta2 = 0.001 half an ulp is more than a step, and v would never fall.
// Source: Loshchilov & Hutter 2017, arXiv:1711.05101, algorithm 2 (decay scaled
// by lr alone); remainders: NVIDIA Apex, DistributedFusedAdam's
// store_param_remainders; m's dtype: Megatron-Core's exp_avg_dtype. Bytes (the
// floor) a parameter: 28, 24 with m in bfloat16.
#ifndef MIMO_KERNELS_OPTIM_ADAMW_H_
#define MIMO_KERNELS_OPTIM_ADAMW_H_

#include "kernels/base/dtype.h"
#include "kernels/base/op.h"
#include "kernels/base/stream.h"
#include "kernels/optim/tensor_list.h"

namespace mimo::kernels {

struct AdamWArgs {
  const TensorList* tensors;
  DType exp_avg_dtype;  // the accumulator dtype or bfloat16
  double beta1, beta2, eps;
  AdamWControl* control;  // [1]
};
MIMO_OP(AdamW, AdamWArgs);

// For checkpoints, where parameters have remainders: grad = p, and back.
struct MastersArgs {
  const TensorList* tensors;
};
MIMO_OP(JoinMasters, MastersArgs);
MIMO_OP(SplitMasters, MastersArgs);

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_OPTIM_ADAMW_H_
