// The CPU's worker pool.
//
// Determinism: which thread runs a chunk never changes a result. A kernel that
// reduces over rows cuts them into chunks by its own fixed rule, keeps one
// partial sum a chunk and adds them in order, whatever NumThreads() says.
#ifndef MIMO_KERNELS_BASE_PARALLEL_H_
#define MIMO_KERNELS_BASE_PARALLEL_H_

#include <cstdint>

#include "absl/functional/function_ref.h"

namespace mimo {

// Threads that ParallelFor uses, the caller among them. Default: $MIMO_THREADS,
// else the CPUs this process may run on.
int NumThreads();
void SetNumThreads(int threads);

// Runs body(begin, end) over a partition of [0, n) into contiguous ranges of at
// least `grain` items (the last may be shorter) and returns when all are done.
// A call from inside a body runs in its caller alone. `body` must not throw.
void ParallelFor(int64_t n, int64_t grain,
                 absl::FunctionRef<void(int64_t begin, int64_t end)> body);

}  // namespace mimo

#endif  // MIMO_KERNELS_BASE_PARALLEL_H_
