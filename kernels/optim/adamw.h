// AdamW over many tensors in one call.
//   g = grad * *grad_scale
//   m = beta1 m + (1-beta1) g,   v = beta2 v + (1-beta2) g^2
//   p = p (1 - lr wd) - lr (m / (1-beta1^step)) / (sqrt(v / (1-beta2^step)) +
//   eps)
// Source: Loshchilov & Hutter 2017, arXiv:1711.05101, algorithm 2 (decay scaled
// by lr alone). Bytes (the floor), fp32: 28 a parameter.
#ifndef MIMO_KERNELS_OPTIM_ADAMW_H_
#define MIMO_KERNELS_OPTIM_ADAMW_H_

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/base/dtype.h"
#include "kernels/base/stream.h"

namespace mimo::kernels {

struct AdamWTensor {
  void* param;       // [size] dtype
  const void* grad;  // [size] accumulator dtype
  void* exp_avg;     // [size] accumulator dtype, m
  void* exp_avg_sq;  // [size] accumulator dtype, v
  int64_t size;
  double lr;            // of this tensor
  double weight_decay;  // of this tensor; 0 where shapes have one dimension
};
struct AdamWArgs {
  absl::Span<const AdamWTensor> tensors;
  double beta1, beta2, eps;
  int64_t step;              // counts from 1
  const double* grad_scale;  // [1] the clip factor
  DType dtype;
};
void AdamW(const AdamWArgs& args, Stream stream);

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_OPTIM_ADAMW_H_
