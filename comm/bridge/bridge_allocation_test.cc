// A bridge's steady state allocates nothing. In a program of its own, as it
// counts every allocation.
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#include "absl/strings/str_cat.h"
#include "comm/bridge/bridge_testing.h"
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

TEST(Bridge, SteadyStateAllocatesNothing) {
  const BridgeSide source = Stage(0, 2, 1, 2);
  // Shared and direct routing, both with sums over cp and strided payloads.
  for (const BridgeSide& destination : {Stage(4, 1, 2, 2), Stage(0, 1, 2, 2)}) {
    const BridgePayload payload{
        .outer = 3, .inner = 5, .source_rows = {4, 3}, .destination_rows = {7}};
    const int size = BridgeRanks(source, destination).size();
    const auto results =
        RunRanks(size, [&](Communicator& world) -> absl::Status {
          MIMO_ASSIGN_OR_RETURN(
              auto made, MakeBridge(world, source, destination,
                                    DefaultBridgeRouting(source, destination)));
          std::vector<float> send(3 * 7 * 5), recv(3 * 7 * 5), grad(3 * 7 * 5),
              recv_grad(3 * 7 * 5);
          int64_t before = 0;
          for (int i = 0; i < 3; ++i) {
            before = allocations;
            MIMO_RETURN_IF_ERROR(made.bridge->ForwardAndBackward(
                {payload, send.data(), recv.data()},
                {payload, grad.data(), recv_grad.data()}, Stream()));
          }
          if (allocations != before) {
            return absl::InternalError(absl::StrCat(
                allocations - before, " allocations in the third call"));
          }
          return absl::OkStatus();
        });
    for (const absl::Status& s : results) EXPECT_TRUE(s.ok()) << s;
  }
}

}  // namespace
}  // namespace mimo
