// A bridge's steady state allocates nothing.
#include <cstdint>
#include <vector>

#include "absl/strings/str_cat.h"
#include "comm/bridge/bridge_testing.h"
#include "comm/inproc/inproc.h"
#include "comm/testing/allocations.h"
#include "gtest/gtest.h"

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
          const bool from = world.rank() < 4,
                     to = world.rank() >= destination.ranks[0];
          MIMO_ASSIGN_OR_RETURN(
              auto made, MakeBridge(world, source, destination,
                                    DefaultBridgeRouting(source, destination)));
          std::vector<float> send(3 * 7 * 5), recv(3 * 7 * 5), grad(3 * 7 * 5),
              recv_grad(3 * 7 * 5);
          int64_t before = 0;
          for (int i = 0; i < 3; ++i) {
            before = Allocations();
            MIMO_RETURN_IF_ERROR(made.bridge->ForwardAndBackward(
                {payload, from ? send.data() : nullptr,
                 to ? recv.data() : nullptr},
                {payload, to ? grad.data() : nullptr,
                 from ? recv_grad.data() : nullptr},
                Stream()));
          }
          if (Allocations() != before) {
            return absl::InternalError(absl::StrCat(
                Allocations() - before, " allocations in the third call"));
          }
          return absl::OkStatus();
        });
    for (const absl::Status& s : results) EXPECT_TRUE(s.ok()) << s;
  }
}

}  // namespace
}  // namespace mimo
