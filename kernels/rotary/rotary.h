// Rotary position embedding, in place on heads of a fused projection.
//   with p = positions[t], c = cos[p,i], s = sin[p,i], i < D/2, per head:
//   (x[i], x[i+D/2]) <- (x[i]*c - x[i+D/2]*s, x[i+D/2]*c + x[i]*s)
// The backward is the inverse rotation (s -> -s) of the gradient.
// Source: Su et al. 2021, arXiv:2104.09864, eq. 34, in the half-split pairing
// of Llama. Bytes (the floor): 2*T*N*D*size.
#ifndef MIMO_KERNELS_ROTARY_ROTARY_H_
#define MIMO_KERNELS_ROTARY_ROTARY_H_

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/op.h"
#include "kernels/base/stream.h"

namespace mimo::kernels {

struct RotaryArgs {
  void* x;          // [T, stride] dtype; N heads of D from column 0
  const void* cos;  // [max_position, D/2] accumulator dtype
  const void* sin;  // [max_position, D/2] accumulator dtype
  // [T], each in [0, max_position); null: sequences of `seq` tokens each, from
  // first_position on.
  const int32_t* positions = nullptr;
  int64_t seq = 0, first_position = 0;
  int64_t tokens, heads, head_dim, stride, max_position;
  bool inverse = false;  // true: the backward
  DType dtype;
};
MIMO_OP(Rotary, RotaryArgs);

// Fills cos and sin [max_position, D/2] (accumulator dtype of `dtype`) with the
// angles p * base^(-2i/D), computed in double. Host memory.
void RotaryTable(void* cos, void* sin, int64_t max_position, int64_t head_dim,
                 double base, DType dtype);

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_ROTARY_ROTARY_H_
