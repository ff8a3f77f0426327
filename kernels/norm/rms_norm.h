// RmsNorm, with the residual add before it fused in.
//   s[t,h]  = x[t,h] + residual[t,h]                  (s = x without residual)
//   r[t]    = 1 / sqrt(mean_h(s[t,h]^2) + eps)
//   y[t,h]  = s[t,h] * r[t] * w[h]
//   ds[t,h] = r[t] * (w[h]*dy[t,h] - s[t,h] * r[t]^2 * mean_h(w*dy*s))
//   dw[h]   = beta * dw[h] + sum_t dy[t,h] * s[t,h] * r[t]
// ds is the gradient of x and of residual alike.
// Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4.
// Numerics: sums in the accumulator dtype; s is rounded to dtype before its
// statistics are taken. A GPU takes up to 32768 columns.
// Bytes (the floor): forward 2*T*H*size (4 with a residual), backward
// 3*T*H*size (4 when ds accumulates).
#ifndef MIMO_KERNELS_NORM_RMS_NORM_H_
#define MIMO_KERNELS_NORM_RMS_NORM_H_

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/op.h"
#include "kernels/base/stream.h"

namespace mimo::kernels {

struct RmsNormForwardArgs {
  const void* x;         // [T, H] dtype
  const void* residual;  // [T, H] dtype; null: none
  const void* weight;    // [H]    dtype
  void* sum;             // [T, H] dtype, s; null exactly when residual is
  void* y;               // [T, H] dtype
  void* rstd;            // [T]    accumulator dtype, r
  int64_t tokens, hidden;
  double eps;
  DType dtype;
};
MIMO_OP(RmsNormForward, RmsNormForwardArgs);

struct RmsNormBackwardArgs {
  const void* x;       // [T, H] dtype, s of the forward
  const void* weight;  // [H]    dtype
  const void* rstd;    // [T]    accumulator dtype, saved by the forward
  const void* dy;      // [T, H] dtype
  void* dx;            // [T, H] dtype, ds; null when not needed
  bool accumulate_dx;  // dx += rather than dx =
  void* dweight;       // [H] accumulator dtype, main_grad; null when frozen
  float dweight_beta;  // 0 on the first write of a step, then 1
  void* workspace;     // RmsNormBackwardWorkspaceBytes(...) bytes
  int64_t tokens, hidden;
  DType dtype;
};
MIMO_OP(RmsNormBackward, RmsNormBackwardArgs);
int64_t RmsNormBackwardWorkspaceBytes(int64_t tokens, int64_t hidden,
                                      DType dtype, Device device);

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_NORM_RMS_NORM_H_
