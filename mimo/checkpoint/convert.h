// Elements of one dtype into another, in memory of any alignment.
#ifndef MIMO_MIMO_CHECKPOINT_CONVERT_H_
#define MIMO_MIMO_CHECKPOINT_CONVERT_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/base/dtype.h"

namespace mimo {

// Floats round to nearest, ties to even (float64 to 16 bits by way of float32);
// too large a float becomes infinite. InvalidArgument: floats into integers, or
// an integer that `to` cannot hold.
absl::Status ConvertElements(const void* from, DType from_dtype, void* to,
                             DType to_dtype, int64_t count);

}  // namespace mimo

#endif  // MIMO_MIMO_CHECKPOINT_CONVERT_H_
