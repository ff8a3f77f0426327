// BiasActivation: what follows a linear layer's product.
//   y[t,f] = act(z[t,f]),  z[t,f] = x[t,f] + b[f]
//   dx     = act'(x + b) * dy,   db[f] = beta * db[f] + sum_t dx[t,f]
//   identity    z
//   gelu        z * Phi(z), Phi(z) = (1 + erf(z/sqrt 2)) / 2 arXiv:1606.08415
//   gelu_tanh   z * (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3))) / 2
//   quick_gelu  z * sigmoid(1.702 z)                            (CLIP)
//   silu        z * sigmoid(z)                    arXiv:1710.05941
//   relu        max(z, 0)
// Bytes (the floor): forward 2*T*F*size, backward 3*T*F*size.
#ifndef MIMO_KERNELS_ACTIVATION_BIAS_ACTIVATION_H_
#define MIMO_KERNELS_ACTIVATION_BIAS_ACTIVATION_H_

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/op.h"
#include "kernels/base/stream.h"

namespace mimo {

enum class Activation { kIdentity, kGelu, kGeluTanh, kQuickGelu, kSilu, kRelu };

}  // namespace mimo

namespace mimo::kernels {

struct BiasActivationForwardArgs {
  const void* x;     // [T, F] dtype
  const void* bias;  // [F]    dtype; null: zero
  void* y;           // [T, F] dtype; may be x
  void* z;           // [T, F] dtype, kept for a backward without bias, or null
  Activation activation;
  int64_t tokens, features;
  DType dtype;
};
MIMO_OP(BiasActivationForward, BiasActivationForwardArgs);

struct BiasActivationBackwardArgs {
  const void* x;     // [T, F] dtype, of the forward; null if identity
  const void* bias;  // [F]    dtype; null: zero
  const void* dy;    // [T, F] dtype
  void* dx;          // [T, F] dtype; may be dy; null if identity (dx is dy)
  void* dbias;       // [F] accumulator dtype, main_grad; null: not wanted
  float dbias_beta;  // 0 on the first write of a step, then 1
  void* workspace;   // BiasActivationBackwardWorkspaceBytes(...) bytes
  Activation activation;
  int64_t tokens, features;
  DType dtype;
};
MIMO_OP(BiasActivationBackward, BiasActivationBackwardArgs);
int64_t BiasActivationBackwardWorkspaceBytes(int64_t tokens, int64_t features,
                                             DType dtype, Device device);

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_ACTIVATION_BIAS_ACTIVATION_H_
