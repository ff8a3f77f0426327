// DistributedDataParallel of parameters that tp ranks have copies of.
#include <cmath>
#include <cstdint>
#include <vector>

#include "comm/inproc/inproc.h"
#include "gtest/gtest.h"
#include "kernels/base/status_macros.h"
#include "mimo/optim/adamw.h"
#include "mimo/parallel/distributed_data_parallel.h"

namespace mimo {
namespace {

void ExpectOk(const std::vector<absl::Status>& statuses) {
  for (const absl::Status& status : statuses)
    EXPECT_TRUE(status.ok()) << status;
}

// tp 2, with one replica or two: a sharded matrix, and a norm's weight of which
// both tp ranks have a copy that sees half of the tokens.
TEST(DistributedDataParallel, CopiesOfTpRanksAreSummedAndCountedOnce) {
  for (const int ranks : {2, 4}) {
    ExpectOk(RunRanks(ranks, [&](Communicator& world) -> absl::Status {
      std::vector<std::vector<int>> tp_groups, dp_groups(2);
      for (int r = 0; r < ranks; ++r) {
        if (r % 2 == 0) tp_groups.push_back({r, r + 1});
        dp_groups[r % 2].push_back(r);
      }
      MIMO_ASSIGN_OR_RETURN(const auto tp, world.Split("tp", tp_groups));
      MIMO_ASSIGN_OR_RETURN(const auto dp, world.Split("dp", dp_groups));
      Allocator allocator;
      Parameter matrix, norm;
      const auto make = [&](Parameter& p, const char* name, Shape shape) {
        p.name = name;
        p.data = Tensor::Zeros(allocator, shape, DType::kFloat32);
        p.main_grad = Tensor(allocator, shape, DType::kFloat32);
      };
      make(matrix, "matrix", {100, 3});
      matrix.whole = {200, 3};
      matrix.sharding = {0, {{100 * tp->rank(), 100}}};
      make(norm, "norm", {90});
      norm.whole = {90};
      norm.sharding = {0, {{0, 90, 2, tp->rank()}}};
      norm.reduce_grad_over_tp = true;
      DistributedDataParallel parallel({{.name = "language",
                                         .parameters = {&norm, &matrix},
                                         .group = dp.get(),
                                         .tp = tp.get()}},
                                       allocator);
      AdamW optimizer({}, {{.shards = parallel.shards(0)}}, &world, allocator);
      // Small whole numbers: every order of sums is exact.
      double squares = 0;
      const auto grad = [](int rank, int64_t i) {
        return (rank + 1) * (i % 7);
      };
      for (Parameter* p : {&matrix, &norm}) {
        p->NextBeta();
        const auto own = p->main_grad.span<float>();
        for (size_t i = 0; i < own.size(); ++i) {
          own[i] = grad(world.rank(), i);
          double sums[2] = {};  // by tp rank
          for (int r = 0; r < ranks; ++r) sums[r % 2] += grad(r, i);
          squares += p == &norm ? std::pow(sums[0] + sums[1], 2)
                                : sums[0] * sums[0] + sums[1] * sums[1];
        }
      }
      parallel.FinishGradSync();
      optimizer.Step(0);
      EXPECT_EQ(optimizer.norm(), std::sqrt(squares));
      for (const ParameterShard& shard : parallel.shards(0)) {
        if (shard.parameter != &norm) continue;
        for (int64_t i = shard.begin; i < shard.end; ++i) {
          float sum = 0;
          for (int r = 0; r < ranks; ++r) sum += grad(r, i);
          EXPECT_EQ(norm.main_grad.span<float>()[i], sum);
        }
      }
      EXPECT_TRUE(parallel.CheckReplicas().ok());
      if (tp->rank() == 1) norm.data.span<float>()[5] += 1;
      EXPECT_EQ(parallel.CheckReplicas().message(),
                "norm: replicas 0 and 1 of group tp have other bits, wanted "
                "the same");
      return parallel.Health();
    }));
  }
}

// Four tp ranks, two key heads: ranks 0 and 1 have the first, 2 and 3 the
// second, behind query rows that each has alone.
TEST(DistributedDataParallel, ACopyOfAHeadOfOtherBitsIsNamed) {
  ExpectOk(RunRanks(4, [](Communicator& world) {
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
  }));
}

}  // namespace
}  // namespace mimo
