// A parameter that two pipeline stages have: DistributedDataParallel keeps it
// one.
#include <cmath>
#include <vector>

#include "absl/strings/match.h"
#include "comm/inproc/inproc.h"
#include "gtest/gtest.h"
#include "kernels/base/status_macros.h"
#include "mimo/optim/adamw.h"
#include "mimo/parallel/distributed_data_parallel.h"

namespace mimo {
namespace {

// Two stages of one replica or two; the table that both have is between other
// parameters, of other sizes on each.
TEST(TiedParameters, TwoStagesStayOne) {
  for (const int ranks : {2, 4}) {
    const auto statuses =
        RunRanks(ranks, [&](Communicator& world) -> absl::Status {
          const int replicas = ranks / 2;
          std::vector<std::vector<int>> dp_groups(2), embd_groups(replicas);
          for (int r = 0; r < ranks; ++r) {
            dp_groups[r / replicas].push_back(r);
            embd_groups[r % replicas].push_back(r);
          }
          MIMO_ASSIGN_OR_RETURN(const auto dp, world.Split("dp", dp_groups));
          MIMO_ASSIGN_OR_RETURN(const auto embd,
                                world.Split("embd", embd_groups));
          Allocator allocator;
          Parameter before, table, after;
          const int stage = world.rank() / replicas;
          const auto make = [&](Parameter& p, const char* name, int64_t size) {
            p.name = name;
            p.data = Tensor::Zeros(allocator, {size}, DType::kFloat32);
            p.main_grad = Tensor(allocator, {size}, DType::kFloat32);
          };
          make(before, "before", 30 + 70 * stage);
          make(table, "table", 150);
          make(after, "after", 200 - 190 * stage);
          table.stage_copies = 2;
          table.stage_copy = stage;
          DistributedDataParallel parallel(
              {{.name = "language",
                .parameters = {&before, &table, &after},
                .group = dp.get(),
                .embd = embd.get()}},
              allocator);
          AdamW optimizer({}, {{.shards = parallel.shards(0)}}, &world,
                          allocator);
          // Small whole numbers: every order of sums is exact.
          const auto grad = [](int rank, int64_t i) {
            return (rank + 1) * (i % 7);
          };
          for (int64_t i = 0; i < 150; ++i)
            table.main_grad.span<float>()[i] = grad(world.rank(), i);
          table.NextBeta();
          parallel.FinishGradSync();
          double squares = 0;
          for (int64_t i = 0; i < 150; ++i) {
            double sum = 0;
            for (int r = 0; r < ranks; ++r) sum += grad(r, i);
            squares += sum * sum;
          }
          optimizer.Step(0.1);
          EXPECT_EQ(optimizer.norm(), std::sqrt(squares));  // counted once
          parallel.GatherParameters();
          EXPECT_NE(table.data.span<float>()[1], 0);
          MIMO_RETURN_IF_ERROR(parallel.CheckReplicas());
          if (stage == 1) table.data.span<float>()[3] *= 1.0000002f;
          EXPECT_TRUE(absl::StrContains(
              parallel.CheckReplicas().message(),
              "table: replicas 0 and 1 of group embd have other bits"));
          // The first stage saves it.
          EXPECT_EQ(optimizer.State().at("exp_avg.table").copy, stage == 1);
          return parallel.Health();
        });
    for (const absl::Status& status : statuses)
      EXPECT_TRUE(status.ok()) << status;
  }
}

}  // namespace
}  // namespace mimo
