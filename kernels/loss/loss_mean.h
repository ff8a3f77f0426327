// The ends of a mean loss over passes and ranks, on the device, so that nothing
// waits for the host:
//   LossScale  scale = 1 / labelled, 0 if nothing is: what seeds backwards
//   AddLoss    sum += loss
#ifndef MIMO_KERNELS_LOSS_LOSS_MEAN_H_
#define MIMO_KERNELS_LOSS_LOSS_MEAN_H_

#include "kernels/base/op.h"
#include "kernels/base/stream.h"

namespace mimo::kernels {

struct LossScaleArgs {
  const double* labelled;  // [1] tokens of all passes and ranks
  double* scale;           // [1]
};
MIMO_OP(LossScale, LossScaleArgs);

struct AddLossArgs {
  const double* loss;  // [1] of a pass
  double* sum;         // [1]
};
MIMO_OP(AddLoss, AddLossArgs);

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_LOSS_LOSS_MEAN_H_
