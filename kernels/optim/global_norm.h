// GlobalNorm: the L2 norm over many tensors, and the factor that clips it.
//   norm  = sqrt(sum over tensors of sum x^2)
//   scale = min(1, max_norm / (norm + 1e-6)), 1 when max_norm = 0
// Sums in double, in a fixed order: the same result for any number of threads.
// A NaN or infinity in x gives a norm that is not finite.
// Source: Pascanu et al. 2012, arXiv:1211.5063, algorithm 1.
// Bytes (the floor): 4 an element.
#ifndef MIMO_KERNELS_OPTIM_GLOBAL_NORM_H_
#define MIMO_KERNELS_OPTIM_GLOBAL_NORM_H_

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/base/dtype.h"
#include "kernels/base/stream.h"

namespace mimo::kernels {

struct NormTensor {
  const void* x;  // [size] dtype
  int64_t size;
};
struct GlobalNormArgs {
  absl::Span<const NormTensor> tensors;
  double max_norm;
  double* norm;   // [1]
  double* scale;  // [1]
  DType dtype;
};
void GlobalNorm(const GlobalNormArgs& args, Stream stream);

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_OPTIM_GLOBAL_NORM_H_
