// SiluGate: the gated half of Llama's feed-forward layer, on one fused product.
//   y[t,f] = silu(g) * u,   g = x[t,f], u = x[t,F+f],  silu(z) = z * sigmoid(z)
//   dg = dy * u * sigmoid(g) * (1 + g * (1 - sigmoid(g))),   du = dy * silu(g)
// Source: Shazeer 2020, arXiv:2002.05202, eq. 6 (SwiGLU).
// Bytes (the floor): forward 3*T*F*size, backward 5*T*F*size.
#ifndef MIMO_KERNELS_ACTIVATION_SILU_GATE_H_
#define MIMO_KERNELS_ACTIVATION_SILU_GATE_H_

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/op.h"
#include "kernels/base/stream.h"

namespace mimo::kernels {

struct SiluGateForwardArgs {
  const void* x;             // [T, 2F] dtype: gate, then up
  void* y;                   // [T, F]  dtype
  int64_t tokens, features;  // T, F
  DType dtype;
};
MIMO_OP(SiluGateForward, SiluGateForwardArgs);

struct SiluGateBackwardArgs {
  const void* x;   // [T, 2F] dtype
  const void* dy;  // [T, F]  dtype
  void* dx;        // [T, 2F] dtype; may be x
  int64_t tokens, features;
  DType dtype;
};
MIMO_OP(SiluGateBackward, SiluGateBackwardArgs);

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_ACTIVATION_SILU_GATE_H_
