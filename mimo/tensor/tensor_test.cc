#include "mimo/tensor/tensor.h"

#include <cstdint>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/backend.h"

namespace mimo {
namespace {

TEST(Allocator, ReusesBlocksAndCounts) {
  Allocator allocator;
  void* first;
  {
    auto a = allocator.Allocate(1000);
    first = a.get();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(first) % 64, 0u);
    EXPECT_GE(allocator.stats().live_bytes, 1000);
    EXPECT_LE(allocator.stats().live_bytes, 1126);  // 12.5 % at most
  }
  EXPECT_EQ(allocator.stats().live_bytes, 0);
  const int64_t reserved = allocator.stats().reserved_bytes;
  auto b = allocator.Allocate(1000);
  EXPECT_EQ(b.get(), first);
  EXPECT_EQ(allocator.stats().reserved_bytes, reserved);
  b.reset();
  EXPECT_GE(allocator.stats().peak_bytes, 1000);
  allocator.ResetPeak();
  EXPECT_EQ(allocator.stats().peak_bytes, 0);
}

TEST(Allocator, EveryClassHoldsItsRequest) {
  Allocator allocator;
  std::vector<std::shared_ptr<void>> blocks;
  int64_t asked = 0;
  for (int64_t bytes = 1; bytes < 5000; bytes += 7) {
    blocks.push_back(allocator.Allocate(bytes));
    std::memset(blocks.back().get(), 1, bytes);  // ASan checks the size
    asked += bytes;
  }
  EXPECT_GE(allocator.stats().live_bytes, asked);
}

TEST(Allocator, BlocksOutliveIt) {
  std::shared_ptr<void> block;
  {
    Allocator allocator;
    block = allocator.Allocate(64);
  }
  std::memset(block.get(), 0, 64);
}

TEST(Allocator, ThreadsShareIt) {
  Allocator allocator;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) allocator.Allocate(64 + i);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(allocator.stats().live_bytes, 0);
}

TEST(Allocator, CountsByTag) {
  Allocator allocator;
  const auto outer = allocator.Allocate(64);
  std::shared_ptr<void> inner;
  {
    const AllocationTag layer(allocator, "layers.0");
    inner = allocator.Allocate(128);
    const AllocationTag norm(allocator, "norm");
    allocator.Allocate(4096);  // given back at once
  }
  const auto after = allocator.Allocate(64);
  using Tags = std::map<std::string, int64_t>;
  EXPECT_EQ(allocator.stats().live_by_tag,
            Tags({{"", 128}, {"layers.0", 128}}));
  inner.reset();
  EXPECT_EQ(allocator.stats().live_by_tag, Tags({{"", 128}}));
}

class AllocatorOnDeviceDeathTest : public BackendTest {};
INSTANTIATE_TEST_SUITE_P(On, AllocatorOnDeviceDeathTest,
                         testing::Values(Backend{Device::kCpu, DType::kFloat32},
                                         Backend{Device::kCuda,
                                                 DType::kFloat32}),
                         BackendName);

// Of all allocators of the device.
TEST_P(AllocatorOnDeviceDeathTest, OutOfMemoryIsOneLine) {
  // A fork has no use of its parent's GPU.
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const bool on_gpu = backend().device == Device::kCuda;
  Allocator allocator(StreamOf(backend())), other(StreamOf(backend()));
  const auto used = other.Allocate(int64_t{1} << 24);
  const AllocationTag first(allocator, "model.layers.0.mlp");
  const auto more = allocator.Allocate(int64_t{1} << 26);
  const AllocationTag second(other, "model.layers.11.mlp");
  const auto most = other.Allocate(int64_t{1} << 26);
  const AllocationTag third(other, "final_norm");  // too little to be named
  const auto least = other.Allocate(1);
  other.Allocate(int64_t{1} << 25);      // which keeps it
  allocator.Allocate(int64_t{1} << 25);  // which first gives it back
  const int64_t too_much = on_gpu
                               ? DeviceMemory(backend().device).total_bytes + 1
                               : int64_t{1} << 60;
  EXPECT_EXIT(
      allocator.Allocate(too_much), testing::ExitedWithCode(2),
      std::string("^mimo: out of memory on ") +
          (on_gpu ? "[^(]+ \\([0-9.]+ of [0-9.]+ GiB free\\): [0-9.]+"
                  : "CPU: 1073741824.00") +
          " GiB wanted, 0.17 GiB in use: model.layers 0.12 GiB, kept for reuse "
          "0.03 GiB, untagged 0.02 GiB\n$");
}

TEST(AllocatorDeathTest, OneThatKeepsGivesNothingBackUnasked) {
  Allocator allocator(Stream(), /*keeps=*/true);
  allocator.Allocate(int64_t{1} << 25);
  EXPECT_EXIT(allocator.Allocate(int64_t{1} << 60), testing::ExitedWithCode(2),
              "wanted, 0.03 GiB in use: kept for reuse 0.03 GiB\n$");
  allocator.ReleaseKept();
  EXPECT_EQ(allocator.stats().reserved_bytes, 0);
}

class TensorOnDevice : public BackendTest {};
MIMO_ON_BACKENDS(TensorOnDevice);

TEST_P(TensorOnDevice, CopiesToAndFromTheHost) {
  Allocator host, device(StreamOf(backend()));
  Tensor there = Tensor::From<float>(device, {2, 2}, {1, 2, 3, 4});
  EXPECT_EQ(there.device(), backend().device);
  const Tensor twice = there.Clone(device);
  there.Rows(0, 1).Zero();
  const auto values = [&](const Tensor& tensor) {
    const Tensor here = tensor.Clone(host);
    return std::vector<float>(here.span<float>().begin(),
                              here.span<float>().end());
  };
  EXPECT_EQ(values(there), std::vector<float>({0, 0, 3, 4}));
  EXPECT_EQ(values(twice), std::vector<float>({1, 2, 3, 4}));
  there.CopyFrom(Tensor::From<float>(host, {2, 2}, {5, 6, 7, 8}));
  EXPECT_EQ(values(there), std::vector<float>({5, 6, 7, 8}));
}

TEST(Tensor, ViewsShareStorage) {
  Allocator allocator;
  Tensor t = Tensor::From<float>(allocator, {3, 2}, {0, 1, 2, 3, 4, 5});
  EXPECT_TRUE(t.unique());
  Tensor rows = t.Rows(1, 3);
  EXPECT_FALSE(t.unique());
  EXPECT_EQ(rows.shape(), Shape({2, 2}));
  EXPECT_EQ(rows.span<float>()[0], 2);
  rows.span<float>()[0] = 9;
  EXPECT_EQ(t.Reshape({6}).span<float>()[2], 9);
  Tensor copy = t.Clone(allocator);
  copy.Zero();
  EXPECT_EQ(t.span<float>()[2], 9);
}

TEST(Tensor, EmptyAndUndefinedDiffer) {
  Allocator allocator;
  Tensor empty(allocator, {0, 5}, DType::kFloat32);
  EXPECT_TRUE(empty.defined());
  EXPECT_EQ(empty.numel(), 0);
  EXPECT_TRUE(empty.Rows(0, 0).defined());
  EXPECT_FALSE(Tensor().defined());
}

TEST(TensorDeathTest, NamesWhatIsWrong) {
  Allocator allocator;
  Tensor t(allocator, {2, 3}, DType::kFloat32);
  EXPECT_DEATH(t.span<double>(), "float32, read as float64");
  EXPECT_DEATH(t.Reshape({4}), "\\[2, 3\\] as \\[4\\]");
  EXPECT_DEATH(t.Rows(1, 3), "rows 1 to 3 of \\[2, 3\\]");
}

}  // namespace
}  // namespace mimo
