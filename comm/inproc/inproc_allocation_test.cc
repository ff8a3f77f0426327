// No operation allocates. In a program of its own, as it counts every
// allocation.
#include <cstdint>
#include <cstdlib>
#include <new>

#include "absl/status/status.h"
#include "comm/inproc/inproc.h"
#include "gtest/gtest.h"

namespace {
thread_local int64_t allocations = 0;
}  // namespace

[[gnu::noinline]] void* operator new(size_t bytes) {
  ++allocations;
  if (void* memory = std::malloc(bytes == 0 ? 1 : bytes)) return memory;
  std::abort();
}
[[gnu::noinline]] void* operator new(size_t bytes,
                                     const std::nothrow_t&) noexcept {
  return operator new(bytes);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}

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
         const int64_t before = allocations;
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
         EXPECT_EQ(allocations, before);
         return absl::OkStatus();
       }))
    EXPECT_TRUE(status.ok()) << status;
}

}  // namespace
}  // namespace mimo
