// The L2 norm over all gradients, and the factor that clips it, in two ops:
//   SumSquares  squares    = sum over counted tensors of sum grad^2
//   ClipFactor  norm       = sqrt(squares), NaN if the loss is not finite
//               grad_scale = min(1, max_norm / (norm + 1e-6)), 1 if max_norm =
//               0
// Ranks that share a model out add up their squares in between.
// Sums in double, in a fixed order: the same result for any number of threads.
// A NaN or infinity in a gradient, counted or not, gives a norm that is not
// finite.
// Source: Pascanu et al. 2012, arXiv:1211.5063, algorithm 1.
// Bytes (the floor), float32: 4 an element.
#ifndef MIMO_KERNELS_OPTIM_GLOBAL_NORM_H_
#define MIMO_KERNELS_OPTIM_GLOBAL_NORM_H_

#include "kernels/base/op.h"
#include "kernels/base/stream.h"
#include "kernels/optim/tensor_list.h"

namespace mimo::kernels {

struct SumSquaresArgs {
  const TensorList* tensors;
  AdamWControl* control;  // [1] squares is written
};
MIMO_OP(SumSquares, SumSquaresArgs);

struct ClipFactorArgs {
  double max_norm;
  const double* loss = nullptr;  // [1]
  AdamWControl* control;         // [1] norm and grad_scale are written
};
MIMO_OP(ClipFactor, ClipFactorArgs);

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_OPTIM_GLOBAL_NORM_H_
