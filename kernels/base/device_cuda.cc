#include "kernels/base/device_cuda.h"

#include <cuda_runtime.h>
#include <nvtx3/nvToolsExt.h>

#include <algorithm>
#include <cstring>
#include <deque>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "kernels/base/cuda_check.h"
#include "kernels/base/out_of_memory.h"

namespace mimo {
namespace {

cudaDeviceProp Properties() {
  cudaDeviceProp properties;
  MIMO_CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  return properties;
}

bool IsPageable(const void* memory) {
  cudaPointerAttributes attributes;
  MIMO_CUDA_CHECK(cudaPointerGetAttributes(&attributes, memory));
  return attributes.type == cudaMemoryTypeUnregistered;
}

// The driver itself stages less than this without waiting.
constexpr int64_t kLeastStaged = 64 << 10;

// Pinned blocks that uploads pass through. As many are made as uploads are
// under way, up to kMost; then the next waits for the oldest.
class UploadStaging {
 public:
  void Upload(void* dst, const void* src, int64_t bytes, Stream stream) {
    absl::MutexLock lock(&mutex_);
    for (int64_t done = 0; done < bytes; done += kBlockBytes) {
      const int64_t part = std::min(kBlockBytes, bytes - done);
      const Block block = Take();
      std::memcpy(block.memory, static_cast<const char*>(src) + done, part);
      MIMO_CUDA_CHECK(cudaMemcpyAsync(static_cast<char*>(dst) + done,
                                      block.memory, part, cudaMemcpyDefault,
                                      RawStream(stream)));
      MIMO_CUDA_CHECK(cudaEventRecord(block.read, RawStream(stream)));
      blocks_.push_back(block);
    }
  }

 private:
  struct Block {
    void* memory = nullptr;
    cudaEvent_t read = nullptr;
  };
  static constexpr int64_t kBlockBytes = 4 << 20;
  static constexpr size_t kMost = 64;

  // A block that nobody reads: the oldest, or a new one.
  Block Take() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Block block;
    if (!blocks_.empty()) {
      block = blocks_.front();
      cudaError_t read = cudaEventQuery(block.read);
      if (read == cudaErrorNotReady && blocks_.size() == kMost)
        read = cudaEventSynchronize(block.read);
      if (read != cudaErrorNotReady) {
        MIMO_CUDA_CHECK(read);
        blocks_.pop_front();
        return block;
      }
    }
    const cudaError_t error = cudaMallocHost(&block.memory, kBlockBytes);
    if (error == cudaErrorMemoryAllocation)
      OutOfMemory(Device::kCpu, "4 MiB of pinned memory wanted");
    MIMO_CUDA_CHECK(error);
    MIMO_CUDA_CHECK(
        cudaEventCreateWithFlags(&block.read, cudaEventDisableTiming));
    return block;
  }

  absl::Mutex mutex_;
  std::deque<Block> blocks_ ABSL_GUARDED_BY(mutex_);  // oldest upload first
};

}  // namespace

absl::Status CheckCuda() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "no GPU (",
        error == cudaSuccess ? "none is visible" : cudaGetErrorString(error),
        "), wanted an NVIDIA GPU of compute capability 9.0"));
  }
  const cudaDeviceProp found = Properties();
  return CheckCapability(found.name, found.major, found.minor);
}

// The kernels are built for sm_90a, which runs on no other.
absl::Status CheckCapability(const std::string& name, int major, int minor) {
  if (major == 9 && minor == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(name, " has compute capability ", major, ".", minor,
                   ", wanted 9.0 (Hopper)"));
}

std::string CudaDeviceName() { return Properties().name; }

Stream NewCudaStream(bool urgent) {
  int least, greatest;
  MIMO_CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  cudaStream_t stream;
  MIMO_CUDA_CHECK(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking,
                                               urgent ? greatest : least));
  return {Device::kCuda, stream};
}

void* AllocateCuda(int64_t bytes) {
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not sticky: cleared
    return nullptr;
  }
  MIMO_CUDA_CHECK(error);
  return memory;
}

// At the process's end the driver may go before the last owner of memory.
void FreeCuda(void* memory) {
  const cudaError_t error = cudaFree(memory);
  if (error != cudaErrorCudartUnloading) MIMO_CUDA_CHECK(error);
}

MemoryInfo CudaMemory() {
  size_t free, total;
  MIMO_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return {static_cast<int64_t>(free), static_cast<int64_t>(total)};
}

void CopyBytesCuda(void* dst, const void* src, int64_t bytes, Stream stream) {
  if (bytes >= kLeastStaged && IsPageable(src) && !IsPageable(dst)) {
    static UploadStaging& staging = *new UploadStaging;
    return staging.Upload(dst, src, bytes, stream);
  }
  MIMO_CUDA_CHECK(
      cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, RawStream(stream)));
}

void CopyBytes2DCuda(void* dst, int64_t dst_pitch, const void* src,
                     int64_t src_pitch, int64_t width, int64_t rows,
                     Stream stream) {
  MIMO_CUDA_CHECK(cudaMemcpy2DAsync(dst, dst_pitch, src, src_pitch, width, rows,
                                    cudaMemcpyDefault, RawStream(stream)));
}

void FillBytesCuda(void* memory, int value, int64_t bytes, Stream stream) {
  MIMO_CUDA_CHECK(cudaMemsetAsync(memory, value, bytes, RawStream(stream)));
}

void SynchronizeCuda(Stream stream) {
  MIMO_CUDA_CHECK(cudaStreamSynchronize(RawStream(stream)));
}

void WaitForCuda(Stream later, Stream earlier) {
  cudaEvent_t event;
  MIMO_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  MIMO_CUDA_CHECK(cudaEventRecord(event, RawStream(earlier)));
  MIMO_CUDA_CHECK(cudaStreamWaitEvent(RawStream(later), event, 0));
  MIMO_CUDA_CHECK(cudaEventDestroy(event));
}

// Relaxed: an allocator may ask for memory meanwhile.
void BeginCaptureCuda(Stream stream) {
  MIMO_CUDA_CHECK(
      cudaStreamBeginCapture(RawStream(stream), cudaStreamCaptureModeRelaxed));
}

std::shared_ptr<void> EndCaptureCuda(Stream stream) {
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  MIMO_CUDA_CHECK(cudaStreamEndCapture(RawStream(stream), &graph));
  MIMO_CUDA_CHECK(cudaGraphInstantiate(&executable, graph, 0));
  MIMO_CUDA_CHECK(cudaGraphDestroy(graph));
  return std::shared_ptr<void>(executable, [](void* p) {
    cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(p));
  });
}

void ReplayCuda(void* captured, Stream stream) {
  MIMO_CUDA_CHECK(cudaGraphLaunch(static_cast<cudaGraphExec_t>(captured),
                                  RawStream(stream)));
}

Event RecordCudaEvent(Stream stream) {
  const auto now = std::chrono::steady_clock::now();
  cudaEvent_t event;
  MIMO_CUDA_CHECK(cudaEventCreate(&event));
  MIMO_CUDA_CHECK(cudaEventRecord(event, RawStream(stream)));
  return {now, std::shared_ptr<void>(event, [](void* p) {
            cudaEventDestroy(static_cast<cudaEvent_t>(p));
          })};
}

void WaitForCudaEvent(Stream later, void* earlier) {
  MIMO_CUDA_CHECK(cudaStreamWaitEvent(RawStream(later),
                                      static_cast<cudaEvent_t>(earlier), 0));
}

double CudaSecondsBetween(void* from, void* to) {
  float milliseconds;
  MIMO_CUDA_CHECK(cudaEventElapsedTime(&milliseconds,
                                       static_cast<cudaEvent_t>(from),
                                       static_cast<cudaEvent_t>(to)));
  return 1e-3 * milliseconds;
}

void BeginRangeCuda(const std::string& name) { nvtxRangePushA(name.c_str()); }
void EndRangeCuda() { nvtxRangePop(); }

}  // namespace mimo
