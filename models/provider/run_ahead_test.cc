// Frozen encoders that run ahead, under layouts of in-process ranks: the same
// bits however far, and as far as was asked.
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "models/provider/encoders_testing.h"
#include "models/provider/layout_testing.h"

namespace mimo {
namespace {

using Module = ModuleParallelismConfig;

constexpr int kIterations = 4;
constexpr int kMicroBatches = 2;  // of each

// Images in all of the second iteration, text alone before and behind.
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

// Whether encoders have later stages, which encode when the first one's output
// comes.
bool Staged(const LayoutCase& layout) {
  return layout.modules[0].second.pipeline_model_parallel_size > 1;
}

struct Outcome {
  std::vector<double> losses;                // of all ranks, of each iteration
  std::vector<double> validated;             // between them
  std::vector<std::vector<double>> weights;  // of each rank
};

// With `spoil`, no encoder has its weights any more from the second iteration
// on.
Outcome Train(const LayoutCase& layout, bool frozen_projections, int run_ahead,
              bool spoil) {
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
        const int turn = links.Program(kMicroBatches, /*forward_only=*/false)
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
        for (int i = 0; i < (spoil ? 2 : kIterations); ++i) {
          const int end = (i + 1) * kMicroBatches;
          auto loss = stage.ForwardBackward(
              absl::MakeSpan(batches).subspan(i * kMicroBatches, kMicroBatches),
              1e-2,
              {.next =
                   [&](int n) {
                     return end + n < all ? &batches[end + n] : nullptr;
                   },
               .before_last_backward =
                   [&](const std::string& module) {
                     // Encoded before the backward, beside those under way.
                     if (module != "language" && !Staged(layout)) {
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
      {kColocated, 2, on(dp, tp)},
      {kColocated, 2, on(tp, dp)},
      {kColocated, 2, on(dp, pp)},
      {kColocated, 2, on(tp, pp)},
      {kColocated, 4, on(Sizes(2, 2), Cp(2, Sizes(2, 1)))},
      {kHeterogeneous, 3, on(tp, Sizes(1, 1, 2))},
      {kHeterogeneous, 4, on(pp, Sizes(1, 1, 2, 2))},
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
      const Outcome wanted = Train(layout, frozen_projections, 0, false);
      ASSERT_EQ(wanted.losses.size(), kIterations);
      for (const int ahead : {1, 2, 3, 9}) {
        const Outcome got = Train(layout, frozen_projections, ahead, false);
        EXPECT_EQ(got.losses, wanted.losses) << ahead;
        EXPECT_EQ(got.validated, wanted.validated) << ahead;
        EXPECT_EQ(got.weights, wanted.weights) << ahead;
      }
      if (Staged(layout)) continue;
      for (const int ahead : {0, 1, 2, 3}) {
        const Outcome spoilt = Train(layout, frozen_projections, ahead, true);
        if (ahead < kMicroBatches) {
          EXPECT_TRUE(std::isnan(spoilt.losses.at(1))) << ahead;
        } else {
          EXPECT_EQ(spoilt.losses.at(1), wanted.losses[1]) << ahead;
        }
      }
    }
  }
}

}  // namespace
}  // namespace mimo
