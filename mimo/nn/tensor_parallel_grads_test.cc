#include "mimo/nn/tensor_parallel_grads.h"

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "comm/inproc/inproc.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

// Any number that depends on all of them.
double Value(int parameter, int rank, int64_t element) {
  return 1.0 / (3 + 7 * parameter + 5 * rank + 11 * element);
}

// A parameter of two blocks of `groups` shards of two rows, as keys and values
// are, with a shard of the rank's own before them.
Parameter Fused(Allocator& allocator, int id, int groups,
                const Communicator& tp) {
  const int ranks = tp.size(), rank = tp.rank(), group = rank * groups / ranks;
  Shard shard = {.begin = 0, .size = 2, .copies = 0};
  for (int r = 0; r < ranks; ++r) {
    if (r * groups / ranks != group) continue;
    if (r == rank) shard.copy = shard.copies;
    ++shard.copies;
  }
  Parameter p;
  p.sharding.shards = {{.begin = 3 * rank, .size = 3}, shard, shard};
  p.reduce_grad_over_tp = true;
  p.main_grad = Tensor(allocator, {7, 2}, DType::kFloat64);
  for (int64_t i = 0; i < 14; ++i)
    p.main_grad.span<double>()[i] = Value(id, rank, i);
  p.written = true;
  return p;
}

TEST(SumGradsOverTp, SumsTheCopiesOfEachShardInTheOrderOfTheRanks) {
  for (int ranks : {1, 2, 3, 4, 6}) {
    for (int groups = 1; groups <= ranks; ++groups) {
      for (const absl::Status& status : RunRanks(ranks, [&](Communicator& tp) {
             Allocator allocator;
             Parameter one = Fused(allocator, 0, groups, tp);
             Parameter two = Fused(allocator, 1, groups, tp);
             Parameter frozen{.frozen = true, .reduce_grad_over_tp = true};
             Parameter whole = Fused(allocator, 2, groups, tp);
             whole.reduce_grad_over_tp = false;
             SumGradsOverTp({.allocator = &allocator},
                            {&one, &frozen, &whole, &two}, tp);
             const std::vector<Parameter*> all = {&one, &two, &whole};
             for (int id = 0; id < 3; ++id) {
               const Shard& shard = all[id]->sharding.shards[1];
               for (int64_t i = 0; i < 14; ++i) {
                 double wanted = Value(id, tp.rank(), i);
                 if (i >= 6 && id < 2) {
                   const int first = tp.rank() - shard.copy;
                   wanted = Value(id, first, i);
                   for (int c = 1; c < shard.copies; ++c)
                     wanted += Value(id, first + c, i);
                 }
                 EXPECT_EQ(all[id]->main_grad.span<double>()[i], wanted);
               }
             }
             return absl::OkStatus();
           }))
        EXPECT_TRUE(status.ok()) << status;
    }
  }
}

TEST(SumGradsOverTp, WhatNothingWroteIsZero) {
  for (const absl::Status& status : RunRanks(2, [&](Communicator& tp) {
         Allocator allocator;
         Parameter p;
         p.sharding.shards = {{0, 1, 2, tp.rank()}};
         p.reduce_grad_over_tp = true;
         p.main_grad = Tensor::From<float>(allocator, {1}, {5});
         p.written = tp.rank() == 1;
         SumGradsOverTp({.allocator = &allocator}, {&p}, tp);
         EXPECT_EQ(p.main_grad.span<float>()[0], 5);
         return absl::OkStatus();
       }))
    EXPECT_TRUE(status.ok()) << status;
}

}  // namespace
}  // namespace mimo
