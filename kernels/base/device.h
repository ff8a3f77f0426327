// The devices of this process: their memory, copies and the order of their
// work, without CUDA's types. CPU calls are done when they return.
#ifndef MIMO_KERNELS_BASE_DEVICE_H_
#define MIMO_KERNELS_BASE_DEVICE_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/base/stream.h"

namespace mimo {

// OK if the device can run mimo; else one sentence: built without CUDA, no GPU,
// a driver too old, a GPU older than sm_90.
absl::Status CheckDevice(Device device);
std::string DeviceName(Device device);  // "NVIDIA H100 80GB HBM3", "CPU"

// A stream of its own on a checked device; lives as long as the process. Where
// kernels of several streams wait for room, those of an urgent one go first:
// collectives, which the other ranks wait for.
enum class StreamPriority { kNormal, kUrgent };
Stream NewStream(Device device,
                 StreamPriority priority = StreamPriority::kNormal);

// Null when the device has no such memory left. Aligned to 256 bytes on a GPU,
// to 64 on the CPU.
void* AllocateMemory(Device device, int64_t bytes);
void FreeMemory(Device device, void* memory);
struct MemoryInfo {
  int64_t free_bytes, total_bytes;
};
MemoryInfo DeviceMemory(Device device);

// dst and src may each be host or device memory. Enqueued; the source may be
// reused on return when it is pageable host memory: it goes by way of pinned
// memory, which the GPU reads when its turn comes, so that the host waits for
// nothing that is on the stream.
void CopyBytes(void* dst, const void* src, int64_t bytes, Stream stream);
// `rows` runs of `width` bytes, each `pitch` bytes behind the one before.
void CopyBytes2D(void* dst, int64_t dst_pitch, const void* src,
                 int64_t src_pitch, int64_t width, int64_t rows, Stream stream);
void FillBytes(void* memory, int value, int64_t bytes, Stream stream);

// Returns when all work enqueued on the stream is done.
void Synchronize(Stream stream);
// Work enqueued on `later` from now on waits for what is on `earlier` now.
void WaitFor(Stream later, Stream earlier);

// Between the two, what is enqueued on a GPU's stream is recorded, not run. The
// result runs it again, on the same addresses.
void BeginCapture(Stream stream);
std::shared_ptr<void> EndCapture(Stream stream);
void Replay(const std::shared_ptr<void>& captured, Stream stream);

// A moment of a stream: when what was enqueued before it is done.
struct Event {
  std::chrono::steady_clock::time_point host;  // when it was recorded
  std::shared_ptr<void> raw;                   // a GPU's; null on the CPU
};
Event RecordEvent(Stream stream);
// Work enqueued on `later` from now on waits for the moment.
void WaitFor(Stream later, const Event& earlier);
// Seconds between two of one stream that are past, to about a microsecond.
double SecondsBetween(const Event& from, const Event& to);

// A range of the host thread that profilers show by name (NVTX); ranges nest.
// Nothing on the CPU.
void BeginRange(Device device, const std::string& name);
void EndRange(Device device);

}  // namespace mimo

#endif  // MIMO_KERNELS_BASE_DEVICE_H_
