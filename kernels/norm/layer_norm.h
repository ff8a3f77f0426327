// LayerNorm, with the residual add before it fused in.
//   s[t,h]  = x[t,h] + residual[t,h]                  (s = x without residual)
//   m[t]    = mean_h(s[t,h]),  r[t] = 1 / sqrt(mean_h((s[t,h]-m[t])^2) + eps)
//   n[t,h]  = (s[t,h] - m[t]) * r[t]
//   y[t,h]  = n[t,h] * w[h] + b[h]
//   ds[t,h] = r[t] * (w*dy - mean_h(w*dy) - n * mean_h(w*dy*n))
//   dw[h]   = beta * dw[h] + sum_t dy * n,   db[h] = beta * db[h] + sum_t dy
// ds is the gradient of x and of residual alike.
// Source: Ba, Kiros & Hinton 2016, arXiv:1607.06450, eq. 4.
// Numerics: two passes over a row (mean, then variance) in the accumulator
// dtype; else as RmsNorm. Bytes (the floor): as RmsNorm's.
#ifndef MIMO_KERNELS_NORM_LAYER_NORM_H_
#define MIMO_KERNELS_NORM_LAYER_NORM_H_

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/op.h"
#include "kernels/base/stream.h"

namespace mimo::kernels {

struct LayerNormForwardArgs {
  const void* x;         // [T, H] dtype
  const void* residual;  // [T, H] dtype; null: none
  const void* weight;    // [H]    dtype
  const void* bias;      // [H]    dtype
  void* sum;             // [T, H] dtype, s; null exactly when residual is
  void* y;               // [T, H] dtype
  void* mean;            // [T]    accumulator dtype
  void* rstd;            // [T]    accumulator dtype
  int64_t tokens, hidden;
  double eps;
  DType dtype;
};
MIMO_OP(LayerNormForward, LayerNormForwardArgs);

struct LayerNormBackwardArgs {
  const void* x;       // [T, H] dtype, s of the forward
  const void* weight;  // [H]    dtype
  const void* mean;    // [T]    accumulator dtype
  const void* rstd;    // [T]    accumulator dtype
  const void* dy;      // [T, H] dtype
  void* dx;            // [T, H] dtype, ds; null when not needed
  bool accumulate_dx;  // dx += rather than dx =
  void* dweight;       // [H] accumulator dtype, main_grad; null when frozen
  void* dbias;         // [H] accumulator dtype, main_grad; null when frozen
  float dweight_beta;  // 0 on the first write of a step, then 1
  float dbias_beta;
  void* workspace;  // LayerNormBackwardWorkspaceBytes(...) bytes
  int64_t tokens, hidden;
  DType dtype;
};
MIMO_OP(LayerNormBackward, LayerNormBackwardArgs);
int64_t LayerNormBackwardWorkspaceBytes(int64_t tokens, int64_t hidden,
                                        DType dtype, Device device);

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_NORM_LAYER_NORM_H_
