#include "kernels/base/device.h"

#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "kernels/base/device_cuda.h"
#include "kernels/base/on_cuda.h"

namespace mimo {
namespace {

constexpr int64_t kCpuAlignment = 64;

}  // namespace

absl::Status CheckDevice(Device device) {
  if (device == Device::kCpu) return absl::OkStatus();
#ifdef MIMO_CUDA
  return CheckCuda();
#else
  return absl::FailedPreconditionError(
      "this binary was built without CUDA, wanted one built "
      "where a CUDA toolkit is found");
#endif
}

std::string DeviceName(Device device) {
  if (device == Device::kCpu) return "CPU";
  MIMO_ON_CUDA(CudaDeviceName());
}

Stream NewStream(Device device, StreamPriority priority) {
  if (device == Device::kCpu) return Stream();
  MIMO_ON_CUDA(NewCudaStream(priority == StreamPriority::kUrgent));
}

void* AllocateMemory(Device device, int64_t bytes) {
  if (device == Device::kCpu) {
    return std::aligned_alloc(kCpuAlignment, (bytes + kCpuAlignment - 1) /
                                                 kCpuAlignment * kCpuAlignment);
  }
  MIMO_ON_CUDA(AllocateCuda(bytes));
}

void FreeMemory(Device device, void* memory) {
  if (device == Device::kCpu) return std::free(memory);
  MIMO_ON_CUDA(FreeCuda(memory));
}

MemoryInfo DeviceMemory(Device device) {
  if (device == Device::kCpu) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    return {sysconf(_SC_AVPHYS_PAGES) * page, sysconf(_SC_PHYS_PAGES) * page};
  }
  MIMO_ON_CUDA(CudaMemory());
}

void CopyBytes(void* dst, const void* src, int64_t bytes, Stream stream) {
  if (bytes == 0) return;
  if (stream.device == Device::kCpu) {
    std::memcpy(dst, src, bytes);
    return;
  }
  MIMO_ON_CUDA(CopyBytesCuda(dst, src, bytes, stream));
}

void CopyBytes2D(void* dst, int64_t dst_pitch, const void* src,
                 int64_t src_pitch, int64_t width, int64_t rows,
                 Stream stream) {
  if (width == 0 || rows == 0) return;
  if (rows == 1 || (dst_pitch == width && src_pitch == width)) {
    return CopyBytes(dst, src, width * rows, stream);
  }
  if (stream.device == Device::kCpu) {
    for (int64_t row = 0; row < rows; ++row) {
      std::memcpy(static_cast<char*>(dst) + row * dst_pitch,
                  static_cast<const char*>(src) + row * src_pitch, width);
    }
    return;
  }
  MIMO_ON_CUDA(
      CopyBytes2DCuda(dst, dst_pitch, src, src_pitch, width, rows, stream));
}

void FillBytes(void* memory, int value, int64_t bytes, Stream stream) {
  if (bytes == 0) return;
  if (stream.device == Device::kCpu) {
    std::memset(memory, value, bytes);
    return;
  }
  MIMO_ON_CUDA(FillBytesCuda(memory, value, bytes, stream));
}

void Synchronize(Stream stream) {
  if (stream.device == Device::kCpu) return;
  MIMO_ON_CUDA(SynchronizeCuda(stream));
}

void WaitFor(Stream later, Stream earlier) {
  if (later.device == Device::kCpu || later.raw == earlier.raw) return;
  MIMO_ON_CUDA(WaitForCuda(later, earlier));
}

void BeginCapture(Stream stream) { MIMO_ON_CUDA(BeginCaptureCuda(stream)); }

std::shared_ptr<void> EndCapture(Stream stream) {
  MIMO_ON_CUDA(EndCaptureCuda(stream));
}

void Replay(const std::shared_ptr<void>& captured, Stream stream) {
  MIMO_ON_CUDA(ReplayCuda(captured.get(), stream));
}

Event RecordEvent(Stream stream) {
  if (stream.device == Device::kCpu) {
    return {std::chrono::steady_clock::now(), nullptr};
  }
  MIMO_ON_CUDA(RecordCudaEvent(stream));
}

void WaitFor(Stream later, const Event& earlier) {
  if (later.device == Device::kCpu) return;
  MIMO_ON_CUDA(WaitForCudaEvent(later, earlier.raw.get()));
}

double SecondsBetween(const Event& from, const Event& to) {
  if (from.raw == nullptr) {
    return std::chrono::duration<double>(to.host - from.host).count();
  }
  MIMO_ON_CUDA(CudaSecondsBetween(from.raw.get(), to.raw.get()));
}

void BeginRange(Device device, const std::string& name) {
  if (device == Device::kCpu) return;
  MIMO_ON_CUDA(BeginRangeCuda(name));
}

void EndRange(Device device) {
  if (device == Device::kCpu) return;
  MIMO_ON_CUDA(EndRangeCuda());
}

}  // namespace mimo
