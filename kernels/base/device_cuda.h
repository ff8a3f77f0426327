// The CUDA halves of device.h.
#ifndef MIMO_KERNELS_BASE_DEVICE_CUDA_H_
#define MIMO_KERNELS_BASE_DEVICE_CUDA_H_

#include "kernels/base/device.h"

namespace mimo {

absl::Status CheckCuda();
// Whether a GPU of that name runs the kernels.
absl::Status CheckCapability(const std::string& name, int major, int minor);
std::string CudaDeviceName();
Stream NewCudaStream(bool urgent);
void* AllocateCuda(int64_t bytes);
void FreeCuda(void* memory);
MemoryInfo CudaMemory();
void CopyBytesCuda(void* dst, const void* src, int64_t bytes, Stream stream);
void CopyBytes2DCuda(void* dst, int64_t dst_pitch, const void* src,
                     int64_t src_pitch, int64_t width, int64_t rows,
                     Stream stream);
void FillBytesCuda(void* memory, int value, int64_t bytes, Stream stream);
void SynchronizeCuda(Stream stream);
void WaitForCuda(Stream later, Stream earlier);
void BeginCaptureCuda(Stream stream);
std::shared_ptr<void> EndCaptureCuda(Stream stream);
void ReplayCuda(void* captured, Stream stream);
Event RecordCudaEvent(Stream stream);
void WaitForCudaEvent(Stream later, void* earlier);
double CudaSecondsBetween(void* from, void* to);
void BeginRangeCuda(const std::string& name);
void EndRangeCuda();

}  // namespace mimo

#endif  // MIMO_KERNELS_BASE_DEVICE_CUDA_H_
