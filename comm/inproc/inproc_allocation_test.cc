// No operation allocates.
#include <cstdint>

#include "absl/status/status.h"
#include "comm/inproc/inproc.h"
#include "comm/testing/allocations.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

TEST(Inproc, OperationsAllocateNothing) {
  for (const absl::Status& status : RunRanks(3, [](Communicator& world) {
         float x[12] = {}, y[12];
         const int64_t counts[] = {1, 1, 1};
         const int next = (world.rank() + 1) % 3;
         const int last = (world.rank() + 2) % 3;
         const Transfer transfers[] = {
             {Transfer::kSend, x, 3, DType::kFloat32, next},
             {Transfer::kRecv, y, 3, DType::kFloat32, last}};
         const int64_t before = Allocations();
         for (int i = 0; i < 200; ++i) {
           world.AllReduce(x, x, 3, DType::kFloat32, ReduceOp::kSum, Stream{});
           world.AllGather(x, y, 3, DType::kFloat32, Stream{});
           world.ReduceScatter(x, y, 3, DType::kFloat32, ReduceOp::kMax,
                               Stream{});
           world.Broadcast(x, 3, DType::kFloat32, 1, Stream{});
           world.AllToAll(x, y, 3, DType::kFloat32, Stream{});
           world.AllToAll(x, counts, y, counts, DType::kFloat32, Stream{});
           world.Exchange(transfers, Stream{});
           world.Barrier(Stream{});
         }
         EXPECT_EQ(Allocations(), before);
         return absl::OkStatus();
       }))
    EXPECT_TRUE(status.ok()) << status;
  EXPECT_GT(Allocations(), 0);  // of the world: they are counted
}

}  // namespace
}  // namespace mimo
