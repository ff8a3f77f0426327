#include "kernels/testing/backend.h"

#include <cmath>
#include <random>
#include <type_traits>

#include "absl/log/check.h"
#include "absl/log/log.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/bfloat16.h"
#include "kernels/base/device.h"
#include "kernels/base/dispatch.h"

namespace mimo {
std::ostream& operator<<(std::ostream& out, const Backend& backend) {
  return out << (backend.device == Device::kCpu ? "Cpu" : "Cuda") << "_"
             << Name(backend.dtype);
}

std::vector<Backend> Backends() {
  return {{Device::kCpu, DType::kFloat32},
          {Device::kCuda, DType::kFloat32},
          {Device::kCuda, DType::kBFloat16}};
}

std::string BackendName(const testing::TestParamInfo<Backend>& info) {
  return testing::PrintToString(info.param);
}

Stream StreamOf(const Backend& backend) {
  if (backend.device == Device::kCpu) return Stream();
  static const Stream stream = NewStream(Device::kCuda);
  return stream;
}

double Roundoff(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return 0x1p-24;
    case DType::kFloat64:
      return 0x1p-53;
    case DType::kBFloat16:
      return 0x1p-8;
    default:
      LOG(FATAL) << "no roundoff of " << Name(dtype);
  }
}

std::vector<double> RandomValues(int64_t n, uint32_t seed, double scale) {
  std::mt19937 bits(seed);
  std::vector<double> values(n);
  for (double& v : values) {
    // 24 random bits, rounded to bfloat16; never 1 after rounding.
    const float uniform = static_cast<float>(bits() >> 8) * 0x1p-23f - 1;
    v = scale * static_cast<float>(BFloat16(uniform < 0.998f ? uniform : 0));
  }
  return values;
}

Array::Array(const Backend& backend, DType dtype, int64_t n, int fill)
    : backend_(backend), dtype_(dtype), size_(n) {
  const int64_t bytes = n * SizeOf(dtype);
  if (bytes == 0) return;
  const Device device = backend.device;
  void* memory = AllocateMemory(device, bytes);
  CHECK(memory != nullptr) << bytes << " bytes";
  memory_ = std::shared_ptr<void>(memory,
                                  [device](void* p) { FreeMemory(device, p); });
  FillBytes(memory, fill, bytes, StreamOf(backend));
}

Array::Array(const Backend& backend, DType dtype,
             const std::vector<double>& values)
    : Array(backend, dtype, values.size(), 0) {
  DispatchDType(dtype, [&]<typename T>() {
    std::vector<T> rounded;
    for (double v : values) {
      if constexpr (std::is_arithmetic_v<T>) {
        rounded.push_back(static_cast<T>(v));
      } else {
        rounded.push_back(T(static_cast<float>(v)));
      }
    }
    CopyBytes(data(), rounded.data(), size_ * sizeof(T), StreamOf(backend_));
    Synchronize(StreamOf(backend_));
  });
}

// All bits set is a NaN in every floating dtype, and -1 in an integer.
Array Array::Poisoned(const Backend& backend, DType dtype, int64_t n) {
  return Array(backend, dtype, n, 0xff);
}
Array Array::Workspace(const Backend& backend, int64_t bytes) {
  return Array(backend, DType::kInt32, (bytes + 3) / 4, 0xff);
}

std::vector<double> Array::Values() const {
  return DispatchDType(dtype_, [&]<typename T>() {
    std::vector<T> raw(size_);
    CopyBytes(raw.data(), data(), size_ * sizeof(T), StreamOf(backend_));
    Synchronize(StreamOf(backend_));
    std::vector<double> values;
    for (const T& v : raw) {
      if constexpr (std::is_arithmetic_v<T>) {
        values.push_back(v);
      } else {
        values.push_back(static_cast<float>(v));
      }
    }
    return values;
  });
}

void BackendTest::SetUp() {
  const absl::Status status = CheckDevice(backend().device);
  if (!status.ok()) GTEST_SKIP() << status.message();
}

}  // namespace mimo
