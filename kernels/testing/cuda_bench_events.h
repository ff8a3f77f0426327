// Timing by CUDA's events, without its types.
#ifndef MIMO_KERNELS_TESTING_CUDA_BENCH_EVENTS_H_
#define MIMO_KERNELS_TESTING_CUDA_BENCH_EVENTS_H_

#include "absl/functional/function_ref.h"
#include "kernels/base/stream.h"

namespace mimo {

// Seconds on the GPU of what op enqueues; waits for it.
double SecondsByEvents(Stream stream, absl::FunctionRef<void(Stream)> op);

}  // namespace mimo

#endif  // MIMO_KERNELS_TESTING_CUDA_BENCH_EVENTS_H_
