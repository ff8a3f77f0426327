#include "kernels/base/device.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/backend.h"

namespace mimo {
namespace {

class DeviceTest : public BackendTest {};
INSTANTIATE_TEST_SUITE_P(On, DeviceTest,
                         testing::Values(Backend{Device::kCpu, DType::kFloat32},
                                         Backend{Device::kCuda,
                                                 DType::kFloat32}),
                         BackendName);

std::vector<uint32_t> Random(int64_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint32_t> values(n);
  std::generate(values.begin(), values.end(), std::ref(random));
  return values;
}

// Uploads of two streams, more than the staging holds, from one buffer that is
// overwritten at once.
TEST_P(DeviceTest, AnUploadedBufferMayBeReusedAtOnce) {
  const Device device = backend().device;
  const Stream streams[] = {NewStream(device),
                            NewStream(device, StreamPriority::kUrgent)};
  for (const int64_t n : {1, 16384, 16385, 1 << 20, 5'000'001}) {
    const int64_t bytes = n * sizeof(uint32_t);
    std::vector<void*> copies;
    for (int i = 0; i < 16; ++i) {
      std::vector<uint32_t> source = Random(n, i);
      void* copy = copies.emplace_back(AllocateMemory(device, bytes));
      FillBytes(copy, 0xff, bytes, streams[i % 2]);
      CopyBytes(copy, source.data(), bytes, streams[i % 2]);
      std::fill(source.begin(), source.end(), 0);
    }
    for (int i = 0; i < 16; ++i) {
      std::vector<uint32_t> back(n);
      CopyBytes(back.data(), copies[i], bytes, streams[i % 2]);
      Synchronize(streams[i % 2]);
      EXPECT_TRUE(back == Random(n, i)) << n << " of upload " << i;
      FreeMemory(device, copies[i]);
    }
  }
}

// Chains of copies from stream to stream, each after the moment of the last.
TEST_P(DeviceTest, AStreamWaitsForAMoment) {
  const Device device = backend().device;
  const Stream streams[] = {NewStream(device), NewStream(device)};
  constexpr int64_t kSize = 4 << 20;
  constexpr int64_t kBytes = kSize * sizeof(uint32_t);
  const std::vector<uint32_t> source = Random(kSize, 1);
  std::vector<void*> copies;
  Event done;
  for (int i = 0; i < 20; ++i) {
    const Stream stream = streams[i % 2];
    if (i > 0) WaitFor(stream, done);
    const void* from = i == 0 ? source.data() : copies.back();
    copies.push_back(AllocateMemory(device, kBytes));
    FillBytes(copies.back(), i, kBytes, stream);
    CopyBytes(copies.back(), from, kBytes, stream);
    done = RecordEvent(stream);
  }
  std::vector<uint32_t> back(kSize);
  WaitFor(streams[0], done);
  CopyBytes(back.data(), copies.back(), kBytes, streams[0]);
  Synchronize(streams[0]);
  EXPECT_TRUE(back == source);
  for (void* copy : copies) FreeMemory(device, copy);
}

}  // namespace
}  // namespace mimo
