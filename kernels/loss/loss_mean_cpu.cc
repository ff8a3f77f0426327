#include "kernels/loss/loss_mean.h"

namespace mimo::kernels {

void LossScaleCpu(const LossScaleArgs& args) {
  *args.scale = *args.labelled > 0 ? 1 / *args.labelled : 0;
}

void AddLossCpu(const AddLossArgs& args) { *args.sum += *args.loss; }

}  // namespace mimo::kernels
