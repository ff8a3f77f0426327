// The largest of each row of logits, what a greedy choice takes:
//   tokens[t] = the first v of those with the largest logits[t,v]
// -1 where none is above -infinity; NaN is not.
// Numerics: exact. Bytes (the floor): T*V*size.
#ifndef MIMO_KERNELS_LOSS_ARG_MAX_H_
#define MIMO_KERNELS_LOSS_ARG_MAX_H_

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/op.h"
#include "kernels/base/stream.h"

namespace mimo::kernels {

struct ArgMaxArgs {
  const void* logits;  // [T, V] dtype
  int32_t* tokens;     // [T]
  int64_t rows, vocab;
  DType dtype;
};
MIMO_OP(ArgMax, ArgMaxArgs);

}  // namespace mimo::kernels

#endif  // MIMO_KERNELS_LOSS_ARG_MAX_H_
