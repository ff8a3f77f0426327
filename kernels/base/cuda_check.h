// MIMO_CUDA_CHECK: a CUDA call that must succeed. After such an error the
// device is lost, so it is fatal; so is a wait for the GPU, or for a value of
// it, while work is captured.
#ifndef MIMO_KERNELS_BASE_CUDA_CHECK_H_
#define MIMO_KERNELS_BASE_CUDA_CHECK_H_

#include <cuda_runtime.h>

#include "absl/log/log.h"

#define MIMO_CUDA_CHECK(call)                                                \
  do {                                                                       \
    if (const cudaError_t mimo_error = (call); mimo_error != cudaSuccess)    \
      LOG(FATAL) << #call ": " << cudaGetErrorString(mimo_error)             \
                 << (mimo_error >= cudaErrorStreamCaptureUnsupported &&      \
                             mimo_error <= cudaErrorStreamCaptureWrongThread \
                         ? ": this pass cannot be captured, it needs "       \
                           "train.cuda_graph: false"                         \
                         : "");                                              \
  } while (false)

#endif  // MIMO_KERNELS_BASE_CUDA_CHECK_H_
