// Frozen encoders that run ahead, under layouts of in-process ranks: the same
// bits however far, and as far as was asked.
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "models/provider/encoders_testing.h"
#include "models/provider/layout_testing.h"

namespace mimo {
namespace {

using Module = ModuleParallelismConfig;

// Of eight micro-batches, of one iteration, two or four. Images in all of the
// second of four, text alone before and behind.
std::vector<std::vector<Sample>> Stream() {
  const auto both = Samples({kImageItems, kSketchItems}), text = Samples({}),
             images = Samples({kImageItems});
  return {both, text, images, both, text, text, images, text};
}

MimoModelConfig Model(bool frozen_projections) {
  MimoModelConfig model = TwoModalities();
  for (const std::string name : {"images", "sketches"}) {
    model.freeze_modality_encoders[name] = true;
    model.freeze_modality_projections[name] = frozen_projections;
  }
  return model;
}

struct Outcome {
  std::vector<double> losses;                // of all ranks, of each iteration
  std::vector<double> validated;             // between them
  std::vector<std::vector<double>> weights;  // of each rank
};

// With `spoil`, no stage of an encoder has its weights any more from the second
// iteration on.
Outcome Train(const LayoutCase& layout, bool frozen_projections,
              int micro_batches, int run_ahead, bool spoil = false) {
  Outcome run;
  run.weights.resize(layout.ranks);
  const auto results =
      RunRanks(layout.ranks, [&](Communicator& world) -> absl::Status {
        Allocator memory;
        const MimoModelConfig config = Model(frozen_projections);
        MimoModelProvider provider = ProviderOf(config, layout.Config());
        MIMO_ASSIGN_OR_RETURN(
            const DistributedModel provided,
            provider.ProvideDistributedModel(
                &world, memory, {.ddp_config = {{.bucket_size = 500}}}));
        DistributedDataParallel& ddp = *provided.data_parallel;
        MimoModel& model = *provided.model;
        MIMO_ASSIGN_OR_RETURN(const auto infra, provider.BuildInfra(&world));
        MIMO_ASSIGN_OR_RETURN(
            ModelLinks links,
            ModelLinks::Connect(model, world, memory, run_ahead));
        const int turn = links.Program(micro_batches, /*forward_only=*/false)
                             .schedule.options.micro_batches;
        MimoStage stage(model, memory, {}, std::move(links));
        std::vector<ParamGroup> groups(ddp.modules().size());
        for (size_t m = 0; m < groups.size(); ++m)
          groups[m].shards = ddp.shards(m);
        AdamW optimizer({}, groups, &world, memory);
        std::vector<MicroBatch> batches;
        for (const std::vector<Sample>& samples : Stream())
          batches.push_back(BatchOf(*infra, config.special_token_ids, samples));
        const auto sum = [&](absl::StatusOr<double> loss,
                             std::vector<double>& losses) -> absl::Status {
          MIMO_RETURN_IF_ERROR(loss.status());
          MIMO_RETURN_IF_ERROR(
              SumOverRanks(&world, memory, absl::MakeSpan(&*loss, 1)));
          if (world.rank() == 0) losses.push_back(*loss);
          return absl::OkStatus();
        };
        const int all = batches.size();
        for (int i = 0; i < (spoil ? 2 : all / micro_batches); ++i) {
          const int end = (i + 1) * micro_batches;
          auto loss = stage.ForwardBackward(
              absl::MakeSpan(batches).subspan(i * micro_batches, micro_batches),
              1e-2,
              {.next =
                   [&](int n) {
                     return end + n < all ? &batches[end + n] : nullptr;
                   },
               .before_last_backward =
                   [&](const std::string& module) {
                     // Encoded before the backward, beside those under way.
                     if (module != "language") {
                       EXPECT_EQ(stage.ahead(),
                                 turn + std::min(run_ahead, all - end));
                     }
                     ddp.BeginLastBackward(module);
                   },
               .after_last_backward = [&] { ddp.EndLastBackward(); }});
          ddp.FinishGradSync();
          MIMO_RETURN_IF_ERROR(sum(loss, run.losses));
          EXPECT_EQ(stage.ahead(), std::min(run_ahead, all - end));
          optimizer.Step(1e-2);
          ddp.GatherParameters();
          for (Parameter* p : stage.Parameters()) p->ForgetGrad();
          MIMO_RETURN_IF_ERROR(
              sum(stage.Loss({batches[3], batches[1]}), run.validated));
          for (Parameter* p : stage.Parameters())
            if (spoil && p->frozen) {
              for (double& x : p->data.span<double>())
                x = std::numeric_limits<double>::quiet_NaN();
            }
        }
        for (const Parameter* p : stage.Parameters())
          for (double x : p->data.span<double>())
            run.weights[world.rank()].push_back(x);
        return ddp.Health();
      });
  for (size_t rank = 0; rank < results.size(); ++rank)
    EXPECT_TRUE(results[rank].ok()) << "rank " << rank << ": " << results[rank];
  return run;
}

TEST(RunAhead, IsBitwiseTheSameAndAsFarAsAsked) {
  const auto on = [](Module encoders, Module language) {
    return std::vector<std::pair<std::string, Module>>{
        {"images", encoders}, {"sketches", encoders}, {"language", language}};
  };
  const Module whole = Sizes(1, 1), tp = Sizes(2, 1), dp = Sizes(1, 2),
               pp = Sizes(1, 1, 0, 2);
  const std::vector<LayoutCase> layouts = {
      {kHomogeneous, 1, on(whole, whole)},
      {kHomogeneous, 2, on(tp, tp)},
      {kHomogeneous, 2, on(dp, dp)},
      {kHomogeneous, 2, on(pp, pp)},
      {kHomogeneous, 3, on(Sizes(1, 1, 0, 3), Sizes(1, 1, 0, 3))},
      {kColocated, 2, on(dp, tp)},
      {kColocated, 2, on(tp, dp)},
      {kColocated, 2, on(dp, pp)},
      {kColocated, 2, on(tp, pp)},
      {kColocated, 4, on(Sizes(2, 2), Cp(2, Sizes(2, 1)))},
      {kHeterogeneous, 3, on(tp, Sizes(1, 1, 2))},
      {kHeterogeneous, 4, on(pp, Sizes(1, 1, 2, 2))},
      {kHeterogeneous, 5, on(Sizes(2, 1, 0, 2), Sizes(1, 1, 4))},
      // A pipeline beside a shorter one, on its second stage's rank.
      {kHeterogeneous,
       4,
       {{"images", Sizes(1, 1, 0, 3)},
        {"sketches", Sizes(1, 1, 1)},
        {"language", Sizes(1, 1, 3)}}},
      // Ranks in the middle have two modules each.
      {kHeterogeneous,
       4,
       {{"images", Sizes(2, 1, 1)},
        {"sketches", Sizes(2, 1)},
        {"language", Sizes(1, 1, 2, 2)}}},
  };
  for (const LayoutCase& layout : layouts) {
    for (const bool frozen_projections : {false, true}) {
      SCOPED_TRACE(testing::Message() << "layout " << &layout - layouts.data()
                                      << " " << frozen_projections);
      const Outcome wanted = Train(layout, frozen_projections, 2, 0);
      ASSERT_EQ(wanted.losses.size(), 4);
      for (const int ahead : {1, 2, 3, 9}) {
        const Outcome got = Train(layout, frozen_projections, 2, ahead);
        EXPECT_EQ(got.losses, wanted.losses) << ahead;
        EXPECT_EQ(got.validated, wanted.validated) << ahead;
        EXPECT_EQ(got.weights, wanted.weights) << ahead;
      }
      for (const int micro_batches : {1, 8}) {
        const Outcome in_turn =
            Train(layout, frozen_projections, micro_batches, 0);
        const Outcome ahead =
            Train(layout, frozen_projections, micro_batches, 3);
        EXPECT_EQ(ahead.losses, in_turn.losses) << micro_batches;
        EXPECT_EQ(ahead.weights, in_turn.weights) << micro_batches;
      }
      for (const int ahead : {0, 1, 2, 3}) {
        const Outcome spoilt =
            Train(layout, frozen_projections, 2, ahead, /*spoil=*/true);
        if (ahead < 2) {
          EXPECT_TRUE(std::isnan(spoilt.losses.at(1))) << ahead;
        } else {
          EXPECT_EQ(spoilt.losses.at(1), wanted.losses[1]) << ahead;
        }
      }
    }
  }
}

// A later stage waits for what the first one gives ahead.
TEST(RunAhead, WhatCannotBeEncodedAheadEndsAllRanks) {
  const Module encoders = Sizes(1, 1, 0, 2);
  const LayoutCase layout = {kHeterogeneous,
                             3,
                             {{"images", encoders},
                              {"sketches", encoders},
                              {"language", Sizes(1, 1, 2)}}};
  const MimoModelConfig config = Model(/*frozen_projections=*/false);
  for (const bool read : {false, true}) {
    const auto results = RunRanks(3, [&](Communicator& world) -> absl::Status {
      Allocator memory;
      MimoModelProvider provider = ProviderOf(config, layout.Config());
      MIMO_ASSIGN_OR_RETURN(
          const DistributedModel provided,
          provider.ProvideDistributedModel(
              &world, memory, {.ddp_config = {{.bucket_size = 500}}}));
      MIMO_ASSIGN_OR_RETURN(const auto infra, provider.BuildInfra(&world));
      MIMO_ASSIGN_OR_RETURN(
          ModelLinks links,
          ModelLinks::Connect(*provided.model, world, memory, 1));
      MimoStage stage(*provided.model, memory, {}, std::move(links));
      const MicroBatch batch =
          BatchOf(*infra, config.special_token_ids, Stream()[0]);
      MicroBatch next = batch;
      if (world.rank() == 0) next.modalities.clear();
      const auto loss = stage.ForwardBackward(
          {batch}, 1, {.next = [&](int) -> absl::StatusOr<const MicroBatch*> {
            if (world.rank() > 0 || read) return &next;
            return absl::NotFoundError("no cat.png");
          }});
      MIMO_RETURN_IF_ERROR(loss.status());
      double one = 1;
      return SumOverRanks(&world, memory, absl::MakeSpan(&one, 1));
    });
    EXPECT_THAT(results[0].message(),
                testing::HasSubstr(read ? "inputs are missing" : "no cat.png"));
    EXPECT_FALSE(results[1].ok());
    EXPECT_FALSE(results[2].ok());
  }
}

}  // namespace
}  // namespace mimo
