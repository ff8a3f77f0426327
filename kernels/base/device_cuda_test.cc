// What ends a process on a GPU, or before it has one: one line, exit code 2.
#include "kernels/base/device_cuda.h"

#include <cuda_runtime.h>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "kernels/base/cuda_check.h"

namespace mimo {
namespace {

TEST(CheckCapability, NamesAGpuOfAnotherKind) {
  EXPECT_TRUE(CheckCapability("NVIDIA H100 80GB HBM3", 9, 0).ok());
  EXPECT_EQ(CheckCapability("NVIDIA A100-SXM4-40GB", 8, 0),
            absl::FailedPreconditionError(
                "NVIDIA A100-SXM4-40GB has compute capability 8.0, wanted 9.0 "
                "(Hopper)"));
  EXPECT_EQ(CheckCapability("NVIDIA B200", 10, 3),
            absl::FailedPreconditionError(
                "NVIDIA B200 has compute capability 10.3, wanted 9.0 "
                "(Hopper)"));
}

class CudaDeathTest : public testing::Test {
 protected:
  void SetUp() override {
    const absl::Status status = CheckDevice(Device::kCuda);
    if (!status.ok()) GTEST_SKIP() << status.message();
    // A fork has no use of its parent's GPU.
    GTEST_FLAG_SET(death_test_style, "threadsafe");
  }
};

TEST_F(CudaDeathTest, OutOfMemoryIsOneLine) {
  void* memory;
  EXPECT_EXIT(
      MIMO_CUDA_CHECK(
          cudaMalloc(&memory, DeviceMemory(Device::kCuda).total_bytes + 1)),
      testing::ExitedWithCode(2),
      "^mimo: out of memory on [^(]+ \\([0-9.]+ of [0-9.]+ GiB free\\): "
      "cudaMalloc\\(&memory, .*\\) failed\n$");
}

// The host waits for what is only recorded.
TEST_F(CudaDeathTest, AWaitInACaptureIsOneLine) {
  const Stream stream = NewStream(Device::kCuda);
  EXPECT_EXIT(
      {
        BeginCapture(stream);
        Synchronize(stream);
      },
      testing::ExitedWithCode(2),
      "^mimo: train.cuda_graph: true, but this pass cannot be captured "
      "\\(cudaStreamSynchronize.*\\), wanted false\n$");
}

}  // namespace
}  // namespace mimo
