#include <string>

#include "gtest/gtest.h"
#include "kernels/testing/backend.h"
#include "mimo/checkpoint/safetensors.h"

namespace mimo {
namespace {

class LoadOnDevice : public BackendTest {};
MIMO_ON_BACKENDS(LoadOnDevice);

// More elements than go to a GPU at once, and not a multiple of them.
TEST_P(LoadOnDevice, GivesEveryElement) {
  Allocator host, device(StreamOf(backend()));
  const Tensor values(host, {(3 << 18) + 1, 3}, DType::kFloat32);
  for (int64_t i = 0; i < values.numel(); ++i)
    values.span<float>()[i] = static_cast<float>(i);
  const std::string path = testing::TempDir() + "/load_on_device.safetensors";
  ASSERT_TRUE(WriteSafeTensors(path, {{"x", values, DType::kFloat32}}).ok());
  const auto file = SafeTensors::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  const auto there = file->Load("x", device);
  ASSERT_TRUE(there.ok()) << there.status();
  EXPECT_EQ(there->device(), backend().device);
  const Tensor back = there->Clone(host);
  for (int64_t i = 0; i < back.numel(); ++i)
    ASSERT_EQ(back.span<float>()[i], i);
}

}  // namespace
}  // namespace mimo
