#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/log/check.h"
#include "kernels/optim/blocks.h"
#include "kernels/optim/global_norm.h"

namespace mimo::kernels {

void SumSquaresCpu(const SumSquaresArgs& args) {
  const TensorList& list = *args.tensors;
  double* partials = list.partials();
  DispatchCpuFloat(list.dtype(), [&]<typename T>() {
    ForBlocks(list, [&](const AdamWTensor& tensor, int64_t block, int64_t begin,
                        int64_t end) {
      const T* grad = static_cast<const T*>(tensor.grad);
      double squares = 0;
#pragma omp simd reduction(+ : squares)
      for (int64_t i = begin; i < end; ++i) {
        const double v = static_cast<double>(grad[i]);
        squares += v * v;
      }
      partials[block] = tensor.counted ? squares : 0 * squares;
    });
  });
  double squares = 0;
  for (int64_t b = 0; b < list.num_blocks(); ++b) squares += partials[b];
  args.control->squares = squares;
}

void ClipFactorCpu(const ClipFactorArgs& args) {
  CHECK_GE(args.max_norm, 0);
  AdamWControl& control = *args.control;
  control.norm = args.loss == nullptr || std::isfinite(*args.loss)
                     ? std::sqrt(control.squares)
                     : std::numeric_limits<double>::quiet_NaN();
  control.grad_scale =
      args.max_norm == 0 ? 1
                         : std::min(1.0, args.max_norm / (control.norm + 1e-6));
}

}  // namespace mimo::kernels
