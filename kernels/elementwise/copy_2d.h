// Copy2d: a block of columns from one matrix into another.
//   dst[r*dst_stride + c] = src[r*src_stride + c]    r < rows, c < columns
// The KV cache takes its keys and values from a fused projection this way.
// Bytes (the floor): 2*rows*columns*size.
#ifndef MIMO_KERNELS_ELEMENTWISE_COPY_2D_H_
#define MIMO_KERNELS_ELEMENTWISE_COPY_2D_H_

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/op.h"
#include "kernels/base/stream.h"

namespace mimo::kernels {

struct Copy2dArgs {
  const void* src;
  int64_t src_stride;  // elements from a row to the next
  void* dst;
  int64_t dst_stride;
  int64_t rows, columns;
  DType dtype;
};
MIMO_OP(Copy2d, Copy2dArgs);

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_ELEMENTWISE_COPY_2D_H_
