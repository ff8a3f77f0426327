// Reduction of what several ranks hold, from memory that this one can read.
#ifndef MIMO_COMM_BASE_REDUCE_H_
#define MIMO_COMM_BASE_REDUCE_H_

#include <cstdint>

#include "absl/types/span.h"
#include "comm/base/operation.h"
#include "kernels/base/dtype.h"

namespace mimo {

// to[q][i] = op over p of from[p][i], for i in [begin, end) and all q. In the
// order of p, so that equal input gives equal bits; bfloat16 and float16 in
// float32 with one rounding at the end; sums of integers wrap. Each to[q] may
// be one of `from`.
void ReduceRange(absl::Span<const void* const> from, absl::Span<void* const> to,
                 int64_t begin, int64_t end, DType dtype, ReduceOp op);

}  // namespace mimo

#endif  // MIMO_COMM_BASE_REDUCE_H_
