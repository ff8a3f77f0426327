// Patch extraction and the tokens of a vision transformer.
//
// Patches: x[n,c,h,w] -> p[(n*Gh+i)*Gw+j, (c*ps+a)*ps+b] =
// x[n,c,i*ps+a,j*ps+b], Gh = H/ps, Gw = W/ps (a remainder of rows or columns is
// dropped, as a strided convolution does), so that patch embedding is one Gemm
// with the convolution's weight [hidden, C*ps*ps]. The backward is the inverse
// copy.
//
// VisionTokens: class token, patches and positions into one sequence.
//   y[n,0,:]   = class_token + position[0,:]               (with a class token)
//   y[n,o+p,:] = x[n,p,:]    + position[o+p,:]             o = 1, or 0 without
//   dx = dy at patches; dclass = sum_n dy[n,0,:]; dposition = sum_n dy[n,:,:]
// Source: Dosovitskiy et al. 2020, arXiv:2010.11929, eq. 1.
#ifndef MIMO_KERNELS_PATCH_PATCHES_H_
#define MIMO_KERNELS_PATCH_PATCHES_H_

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/op.h"
#include "kernels/base/stream.h"

namespace mimo::kernels {

struct PatchArgs {
  const void* in;  // forward: [N, C, H, W]; backward: [N*Gh*Gw, C*ps*ps]
  void* out;       // the other one; backward clears the dropped remainder
  int64_t images, channels, height, width, patch_size;
  DType dtype;
};
MIMO_OP(PatchForward, PatchArgs);
MIMO_OP(PatchBackward, PatchArgs);

struct VisionTokensForwardArgs {
  const void* x;                    // [N*P, H] dtype
  const void* class_token;          // [H] dtype; null: none
  const void* position;             // [o+P, H] dtype
  void* y;                          // [N*(o+P), H] dtype
  int64_t images, patches, hidden;  // N, P, H
  DType dtype;
};
MIMO_OP(VisionTokensForward, VisionTokensForwardArgs);

struct VisionTokensBackwardArgs {
  const void* dy;     // [N*(o+P), H] dtype
  bool class_token;   // whether the forward had one
  void* dx;           // [N*P, H] dtype, written; null when not needed
  void* dclass;       // [H] accumulator dtype, main_grad; null: not wanted
  void* dposition;    // [o+P, H] accumulator dtype, main_grad; null: not wanted
  float dclass_beta;  // 0 on the first write of a step, then 1
  float dposition_beta;
  int64_t images, patches, hidden;
  DType dtype;
};
MIMO_OP(VisionTokensBackward, VisionTokensBackwardArgs);

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_PATCH_PATCHES_H_
