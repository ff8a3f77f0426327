// A tensor's values in another dtype; no gradient flows through it.
#ifndef MIMO_MIMO_AUTOGRAD_OPS_CAST_H_
#define MIMO_MIMO_AUTOGRAD_OPS_CAST_H_

#include "kernels/elementwise/cast.h"
#include "mimo/autograd/context.h"

namespace mimo {

// `x` itself when it is of that dtype already.
inline Tensor Cast(const Context& ctx, const Tensor& x, DType dtype) {
  if (x.dtype() == dtype) return x;
  Tensor out = ctx.Empty(x.shape(), dtype);
  kernels::Cast({.src = x.data(),
                 .src_dtype = x.dtype(),
                 .dst = out.data(),
                 .dst_dtype = dtype,
                 .size = x.numel()},
                ctx.compute);
  return out;
}

}  // namespace mimo

#endif  // MIMO_MIMO_AUTOGRAD_OPS_CAST_H_
