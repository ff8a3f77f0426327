// What all code that calls CUDA shares.
//
// MIMO_CUDA_CHECK: a CUDA call that must succeed. After most errors the device
// is lost, so they are fatal. Out of memory, or a wait for the GPU, or for a
// value of it, while work is captured, is one line and exit code 2.
#ifndef MIMO_KERNELS_BASE_CUDA_CHECK_H_
#define MIMO_KERNELS_BASE_CUDA_CHECK_H_

#include <cuda_runtime.h>

#include "kernels/base/stream.h"

#define MIMO_CUDA_CHECK(call)                                             \
  do {                                                                    \
    if (const cudaError_t mimo_error = (call); mimo_error != cudaSuccess) \
      ::mimo::CudaFailed(#call, mimo_error, __FILE__, __LINE__);          \
  } while (false)

namespace mimo {

[[noreturn]] void CudaFailed(const char* call, cudaError_t error,
                             const char* file, int line);

inline cudaStream_t RawStream(Stream stream) {
  return static_cast<cudaStream_t>(stream.raw);
}

}  // namespace mimo

#endif  // MIMO_KERNELS_BASE_CUDA_CHECK_H_
