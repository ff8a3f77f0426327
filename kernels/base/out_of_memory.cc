#include "kernels/base/out_of_memory.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"

#ifdef MIMO_CUDA
#include <cuda_runtime.h>
#endif

namespace mimo {
namespace {

std::atomic<MemoryHolders> memory_holders = nullptr;

// Asked without checks, which would end here again.
std::string Describe(Device device) {
  if (device == Device::kCpu) return "CPU";
#ifdef MIMO_CUDA
  cudaDeviceProp gpu;
  size_t free, total;
  if (cudaGetDeviceProperties(&gpu, 0) == cudaSuccess &&
      cudaMemGetInfo(&free, &total) == cudaSuccess) {
    return absl::StrFormat("%s (%.2f of %.2f GiB free)", gpu.name,
                           free / 0x1p30, total / 0x1p30);
  }
#endif
  return "the GPU";
}

}  // namespace

void SetMemoryHolders(MemoryHolders holders) { memory_holders = holders; }

void OutOfMemory(Device device, absl::string_view wanted) {
  static absl::Mutex& first = *new absl::Mutex;
  first.Lock();  // for good
  std::string line =
      absl::StrCat("mimo: out of memory on ", Describe(device), ": ", wanted);
  if (const MemoryHolders holders = memory_holders; holders != nullptr)
    absl::StrAppend(&line, ", ", holders(device));
  std::fprintf(stderr, "%s\n", line.c_str());
  std::_Exit(2);
}

}  // namespace mimo
