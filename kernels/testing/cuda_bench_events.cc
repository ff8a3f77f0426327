#include "kernels/testing/cuda_bench_events.h"

#include <cuda_runtime.h>

#include "kernels/base/cuda_check.h"

namespace mimo {

double SecondsByEvents(Stream stream, absl::FunctionRef<void(Stream)> op) {
  const auto raw = static_cast<cudaStream_t>(stream.raw);
  static const auto event = [] {
    cudaEvent_t event;
    MIMO_CUDA_CHECK(cudaEventCreate(&event));
    return event;
  };
  static const cudaEvent_t start = event(), stop = event();
  MIMO_CUDA_CHECK(cudaEventRecord(start, raw));
  op(stream);
  MIMO_CUDA_CHECK(cudaEventRecord(stop, raw));
  MIMO_CUDA_CHECK(cudaEventSynchronize(stop));
  float milliseconds = 0;
  MIMO_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, start, stop));
  return milliseconds * 1e-3;
}

}  // namespace mimo
