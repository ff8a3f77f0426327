// Cast: dst[i] = src[i] in another floating dtype, to the nearest, ties to even
// (float64 to bfloat16 by way of float32). src and dst do not overlap.
// dtypes: float32 and bfloat16; on the CPU float64 too.
// Bytes (the floor): the two sizes an element.
#ifndef MIMO_KERNELS_ELEMENTWISE_CAST_H_
#define MIMO_KERNELS_ELEMENTWISE_CAST_H_

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/op.h"
#include "kernels/base/stream.h"

namespace mimo::kernels {

struct CastArgs {
  const void* src;  // [size] src_dtype
  DType src_dtype;
  void* dst;  // [size] dst_dtype
  DType dst_dtype;
  int64_t size;
};
MIMO_OP(Cast, CastArgs);

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_ELEMENTWISE_CAST_H_
