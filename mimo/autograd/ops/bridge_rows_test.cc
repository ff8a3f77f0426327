#include "mimo/autograd/ops/bridge_rows.h"

#include <vector>

#include "comm/bridge/bridge_testing.h"
#include "comm/inproc/inproc.h"
#include "gtest/gtest.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

// A lane of two tp ranks goes to two replicas, uneven: two rows and one.
TEST(BridgeRows, GradientsComeBackToEveryCopy) {
  const auto results = RunRanks(2, [](Communicator& world) -> absl::Status {
    const BridgeSide from = Stage(0, /*dp=*/1, /*cp=*/1, /*tp=*/2);
    const BridgeSide to = Stage(0, /*dp=*/2, /*cp=*/1, /*tp=*/1);
    MIMO_ASSIGN_OR_RETURN(
        const BridgeWithGroups made,
        MakeBridge(world, from, to, DefaultBridgeRouting(from, to)));
    const BridgePayload payload{.inner = 2,
                                .source_rows = {3},
                                .destination_rows = {2, 1},
                                .dtype = DType::kFloat64};
    Allocator allocator;
    const int rank = world.rank();
    const auto run = [&](const std::vector<double>& dout) {
      Tape tape;
      const Context ctx{.allocator = &allocator, .tape = &tape};
      const Var x = tape.Input(
          Tensor::From<double>(allocator, {3, 2}, {1, 2, 3, 4, 5, 6}));
      const auto out =
          BridgeRows(ctx, *made.bridge, payload, x, rank == 0 ? 2 : 1);
      EXPECT_TRUE(out.ok()) << out.status();
      const auto values = out->value.span<double>();
      EXPECT_EQ(std::vector<double>(values.begin(), values.end()),
                rank == 0 ? std::vector<double>({1, 2, 3, 4})
                          : std::vector<double>({5, 6}));
      std::vector<Tape::Seed> seeds;
      if (!dout.empty()) {
        seeds.push_back({out->slot, Tensor::From<double>(
                                        allocator, out->value.shape(), dout)});
      }
      tape.Backward(ctx, seeds);
      const Tensor dx = tape.TakeGrad(x.slot);
      const auto grad = dx.span<double>();
      return std::vector<double>(grad.begin(), grad.end());
    };
    EXPECT_EQ(run(rank == 0 ? std::vector<double>({10, 20, 30, 40})
                            : std::vector<double>({50, 60})),
              std::vector<double>({10, 20, 30, 40, 50, 60}));
    // Rank 1 uses its row for nothing, but is there for rank 0's gradient.
    EXPECT_EQ(run(rank == 0 ? std::vector<double>({10, 20, 30, 40})
                            : std::vector<double>()),
              std::vector<double>({10, 20, 30, 40, 0, 0}));
    // Without a gradient nothing is recorded.
    Tape tape;
    const Context ctx{.allocator = &allocator, .tape = &tape};
    const Var constant{Tensor::Zeros(allocator, {3, 2}, DType::kFloat64)};
    MIMO_ASSIGN_OR_RETURN(
        const Var out,
        BridgeRows(ctx, *made.bridge, payload, constant, rank == 0 ? 2 : 1));
    EXPECT_FALSE(out.needs_grad());
    EXPECT_EQ(tape.nodes(), 0);
    return absl::OkStatus();
  });
  for (const absl::Status& status : results) EXPECT_TRUE(status.ok()) << status;
}

}  // namespace
}  // namespace mimo
