// DeviceBuffer: memory of a stream's device between guard bytes, for tests.
#ifndef MIMO_COMM_TESTING_DEVICE_BUFFER_H_
#define MIMO_COMM_TESTING_DEVICE_BUFFER_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "absl/log/check.h"
#include "kernels/base/device.h"
#include "kernels/base/stream.h"

namespace mimo {

class DeviceBuffer {
 public:
  explicit DeviceBuffer(Stream stream) : stream_(stream) {}
  ~DeviceBuffer() { FreeMemory(stream_.device, memory_); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  // Holds these values from now on.
  template <typename T>
  T* Set(const std::vector<T>& values) {
    return static_cast<T*>(Write(values.data(), values.size() * sizeof(T)));
  }
  // Holds `count` elements of bytes kPoison: NaN or huge as a float.
  template <typename T>
  T* Poison(int64_t count) {
    return static_cast<T*>(Write(nullptr, count * sizeof(T)));
  }
  // What it holds, once the stream's work is done.
  template <typename T>
  std::vector<T> Get() {
    Read();
    std::vector<T> values(bytes_ / sizeof(T));
    if (!values.empty())
      std::memcpy(values.data(), host_.data() + kGuard, bytes_);
    return values;
  }
  // Whether the last Get found the bytes on both sides as they were.
  bool guarded() const {
    const auto IsPoison = [](char c) { return c == kPoison; };
    return std::all_of(host_.begin(), host_.begin() + kGuard, IsPoison) &&
           std::all_of(host_.end() - kGuard, host_.end(), IsPoison);
  }

 private:
  static constexpr int64_t kGuard = 256;
  static constexpr char kPoison = 0x7f;

  void* Write(const void* values, int64_t bytes) {
    bytes_ = bytes;
    host_.assign(bytes + 2 * kGuard, kPoison);
    if (values != nullptr && bytes > 0)
      std::memcpy(host_.data() + kGuard, values, bytes);
    if (static_cast<int64_t>(host_.size()) > capacity_) {
      FreeMemory(stream_.device, memory_);
      capacity_ = 2 * host_.size();
      memory_ = static_cast<char*>(AllocateMemory(stream_.device, capacity_));
      CHECK(memory_ != nullptr) << "no memory for " << capacity_ << " bytes";
    }
    CopyBytes(memory_, host_.data(), host_.size(), stream_);
    return memory_ + kGuard;
  }
  void Read() {
    CopyBytes(host_.data(), memory_, host_.size(), stream_);
    Synchronize(stream_);
  }

  const Stream stream_;
  char* memory_ = nullptr;
  int64_t capacity_ = 0, bytes_ = 0;
  std::vector<char> host_;  // guard, values, guard
};

}  // namespace mimo

#endif  // MIMO_COMM_TESTING_DEVICE_BUFFER_H_
