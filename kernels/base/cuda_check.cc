#include "kernels/base/cuda_check.h"

#include <cstdio>
#include <cstdlib>

#include "absl/log/log.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/out_of_memory.h"

namespace mimo {

void CudaFailed(const char* call, cudaError_t error, const char* file,
                int line) {
  const char* const why = cudaGetErrorString(error);
  if (error == cudaErrorMemoryAllocation)
    OutOfMemory(Device::kCuda, absl::StrCat(call, " failed"));
  if (error >= cudaErrorStreamCaptureUnsupported &&
      error <= cudaErrorStreamCaptureWrongThread) {
    std::fprintf(stderr,
                 "mimo: train.cuda_graph: true, but this pass cannot be "
                 "captured (%s: %s), wanted false\n",
                 call, why);
    std::_Exit(2);
  }
  LOG(FATAL).AtLocation(file, line) << call << ": " << why;
}

}  // namespace mimo
