#include <vector>

#include "comm/inproc/inproc.h"
#include "gtest/gtest.h"
#include "mimo/parallel/distributed_data_parallel.h"

namespace mimo {
namespace {

// Four tp ranks, two key heads: ranks 0 and 1 have the first, 2 and 3 the
// second, behind query rows that each has alone.
TEST(DistributedDataParallel, ACopyOfAHeadOfOtherBitsIsNamed) {
  const auto statuses = RunRanks(4, [](Communicator& world) {
    Allocator allocator;
    const int rank = world.rank();
    Parameter qkv;
    qkv.name = "qkv";
    qkv.sharding.shards = {{rank, 1}, {4 + rank / 2, 1, 2, rank % 2}};
    const std::vector<float> rows = {float(rank), float(rank / 2)};
    qkv.data = Tensor::From<float>(allocator, {2, 1}, rows);
    qkv.main_grad = Tensor(allocator, {2, 1}, DType::kFloat32);
    DataParallelModule module = {.name = "language", .parameters = {&qkv}};
    module.tp = &world;
    DistributedDataParallel parallel({module}, allocator);
    EXPECT_TRUE(parallel.CheckReplicas().ok());
    if (rank == 3) qkv.data.span<float>()[1] = 2;
    EXPECT_EQ(parallel.CheckReplicas().message(),
              "qkv: replicas 2 and 3 of group world have other bits, wanted "
              "the same");
    return absl::OkStatus();
  });
  for (const absl::Status& status : statuses)
    EXPECT_TRUE(status.ok()) << status;
}

}  // namespace
}  // namespace mimo
