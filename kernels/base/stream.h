// Stream: where work is enqueued. On the CPU work runs at once, in the caller,
// helped by the pool of kernels/base/parallel.h.
#ifndef MIMO_KERNELS_BASE_STREAM_H_
#define MIMO_KERNELS_BASE_STREAM_H_

namespace mimo {

enum class Device { kCpu, kCuda };

struct Stream {
  Device device = Device::kCpu;
  void* raw = nullptr;  // cudaStream_t of a CUDA stream
};

}  // namespace mimo

#endif  // MIMO_KERNELS_BASE_STREAM_H_
