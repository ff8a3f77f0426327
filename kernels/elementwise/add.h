// Add: out[i] = a[i] + b[i]. out may be a or b.
// Bytes (the floor): 3*size an element.
#ifndef MIMO_KERNELS_ELEMENTWISE_ADD_H_
#define MIMO_KERNELS_ELEMENTWISE_ADD_H_

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/op.h"
#include "kernels/base/stream.h"

namespace mimo::kernels {

struct AddArgs {
  const void* a;  // [size] dtype
  const void* b;  // [size] dtype
  void* out;      // [size] dtype
  int64_t size;
  DType dtype;
};
MIMO_OP(Add, AddArgs);

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_ELEMENTWISE_ADD_H_
