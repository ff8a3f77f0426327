#include "models/parallelism/module_schedule.h"

#include <random>

#include "absl/log/check.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "models/parallelism/random_config.h"

namespace mimo {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Module = ModuleParallelismConfig;

MimoParallelismConfig Config(DeploymentMode mode, Module images,
                             Module language, int world) {
  MimoParallelismConfig config = {
      .deployment_mode = mode,
      .module_parallelisms = {{"images", images}, {"language", language}},
      .allow_idle_ranks = true};
  CHECK_OK(config.Finalize(world));
  return config;
}

PipelineSchedule Make(const MimoParallelismConfig& config, int micro_batches,
                      const std::map<std::string, int>& frozen_stages = {}) {
  auto schedule = MakeModuleSchedule(config, frozen_stages,
                                     {.micro_batches = micro_batches});
  CHECK_OK(schedule.status());
  return *std::move(schedule);
}

// Images on ranks 0 and 1, language on 2 to 9 in two stages of TP 2, DP 2.
const MimoParallelismConfig& Heterogeneous() {
  static const auto* config = new MimoParallelismConfig(
      Config(DeploymentMode::kHeterogeneous, Module{.data_parallel_size = 2},
             Module{.tensor_model_parallel_size = 2,
                    .pipeline_model_parallel_size = 2,
                    .data_parallel_size = 2,
                    .rank_offset = 2},
             11));
  return *config;
}

TEST(ModuleSchedule, HeterogeneousIsOnePipeline) {
  const PipelineSchedule schedule = Make(Heterogeneous(), 5);
  EXPECT_EQ(schedule.total_stages, 3);
  EXPECT_FALSE(schedule.options.three_phases);
  EXPECT_THAT(StagesOfRank(schedule, Heterogeneous(), 1),
              ElementsAre(schedule.StageOf("images")));
  EXPECT_THAT(StagesOfRank(schedule, Heterogeneous(), 5),
              ElementsAre(schedule.StageOf("language", 0)));
  EXPECT_THAT(StagesOfRank(schedule, Heterogeneous(), 6),
              ElementsAre(schedule.StageOf("language", 1)));
  EXPECT_THAT(StagesOfRank(schedule, Heterogeneous(), 10), IsEmpty());
  const IdealTime ideal = IdealIteration(
      schedule, Heterogeneous(),
      TimesOfStages(schedule, {{"images", {1, 2}}, {"language", {1, 2}}}), 5);
  EXPECT_EQ(ideal.milliseconds, (5 + 3 - 1) * 3);
  EXPECT_NEAR(ideal.bubble_share, 2. / 7, 1e-15);
}

// Three stages of one encoder beside one of another: both start at once, and
// the language model waits for the longer.
TEST(ModuleSchedule, EncodersOfDifferentDepth) {
  MimoParallelismConfig config = {
      .deployment_mode = DeploymentMode::kHeterogeneous,
      .module_parallelisms = {{"images", {.data_parallel_size = 2}},
                              {"audio",
                               {.pipeline_model_parallel_size = 3,
                                .data_parallel_size = 1,
                                .rank_offset = 2}},
                              {"language",
                               {.pipeline_model_parallel_size = 2,
                                .data_parallel_size = 1,
                                .rank_offset = 5}}}};
  CHECK_OK(config.Finalize(7));
  const PipelineSchedule schedule = Make(config, 8);
  EXPECT_EQ(schedule.total_stages, 5);
  EXPECT_EQ(schedule.WarmUp(schedule.StageOf("images")), 4);
  for (int stage : {0, 1, 2})
    EXPECT_EQ(schedule.WarmUp(schedule.StageOf("audio", stage)), 4 - stage);
  for (int stage : {0, 1})
    EXPECT_EQ(schedule.WarmUp(schedule.StageOf("language", stage)), 1 - stage);
  EXPECT_THAT(StagesOfRank(schedule, config, 4),
              ElementsAre(schedule.StageOf("audio", 2)));
  const IdealTime ideal = IdealIteration(
      schedule, config,
      TimesOfStages(
          schedule,
          {{"images", {1, 2}}, {"audio", {1, 2}}, {"language", {1, 2}}}),
      8);
  EXPECT_EQ(ideal.milliseconds, (8 + 5 - 1) * 3);
  EXPECT_NEAR(ideal.bubble_share, 4. / 12, 1e-15);
}

// 2 of 10 ranks have a third of the others' work.
TEST(ModuleSchedule, BubbleCountsRanks) {
  const PipelineSchedule schedule = Make(Heterogeneous(), 5, {{"images", 1}});
  const IdealTime ideal = IdealIteration(
      schedule, Heterogeneous(),
      TimesOfStages(schedule, {{"images", {1, 2}}, {"language", {1, 2}}}), 5);
  EXPECT_EQ(ideal.milliseconds, 1 + (5 + 2 - 1) * 3);
  EXPECT_NEAR(ideal.bubble_share, 1 - (2 * 5 * 1 + 8 * 5 * 3) / (10 * 19.),
              1e-15);
}

TEST(ModuleSchedule, ColocatedPipelineIsThreePhases) {
  const auto config = Config(DeploymentMode::kColocated, Module{},
                             Module{.pipeline_model_parallel_size = 2}, 4);
  const PipelineSchedule schedule = Make(config, 6);
  EXPECT_TRUE(schedule.options.three_phases);
  EXPECT_THAT(
      StagesOfRank(schedule, config, 3),
      ElementsAre(schedule.StageOf("images"), schedule.StageOf("language", 1)));
  const IdealTime ideal = IdealIteration(
      schedule, config,
      TimesOfStages(schedule, {{"images", {1, 2}}, {"language", {2, 4}}}), 6);
  EXPECT_EQ(ideal.milliseconds, 6 * 3 + (6 + 2 - 1) * 6);
  EXPECT_NEAR(ideal.bubble_share, 1 - 6 * 9 / 60., 1e-15);
}

TEST(ModuleSchedule, WithoutPipelinesEachMicroBatchInTurn) {
  for (const DeploymentMode mode :
       {DeploymentMode::kHomogeneous, DeploymentMode::kColocated}) {
    const auto config = Config(mode, Module{}, Module{}, 2);
    const PipelineSchedule schedule = Make(config, 6);
    EXPECT_EQ(schedule.options.micro_batches, 1);
    const std::vector<int> held = StagesOfRank(schedule, config, 1);
    EXPECT_THAT(held, ElementsAre(0, 1));
    EXPECT_EQ(schedule.Program(held).size(), 6);  // 2 transfers
    const IdealTime ideal = IdealIteration(
        schedule, config,
        TimesOfStages(schedule, {{"images", {1, 2}}, {"language", {2, 4}}}), 6);
    EXPECT_EQ(ideal.milliseconds, 6 * 9);
    EXPECT_EQ(ideal.bubble_share, 0);
  }
}

// Stages of any times, where one is slower than another by much or by nearly
// nothing, the slow one first, last or frozen.
TEST(ModuleSchedule, ManyMicroBatchesTakeWhatAllSimulatedWould) {
  std::mt19937 bits(20261128);
  const auto below = [&](int end) {
    return std::uniform_int_distribution(0, end - 1)(bits);
  };
  int part = 0;
  for (int i = 0; i < 300; ++i) {
    const DeploymentMode mode = kModes[below(3)];
    const bool apart = mode == DeploymentMode::kHeterogeneous;
    const int language = 1 + below(6);
    const int images = apart                                  ? 1 + below(4)
                       : mode == DeploymentMode::kHomogeneous ? language
                                                              : 1;
    const auto config =
        apart ? Config(mode,
                       {.pipeline_model_parallel_size = images,
                        .data_parallel_size = 1},
                       {.pipeline_model_parallel_size = language,
                        .data_parallel_size = 1,
                        .rank_offset = below(2) * images},
                       images + language)
              : Config(mode, {.pipeline_model_parallel_size = images},
                       {.pipeline_model_parallel_size = language}, language);
    const auto made =
        MakeModuleSchedule(config, {{"images", below(images + 1)}},
                           {.micro_batches = 1 + below(400)});
    ASSERT_TRUE(made.ok()) << made.status();
    std::vector<StageTime> times;
    for (size_t s = 0; s < made->stages.size(); ++s) {
      const double nearly[] = {0, 1e-3, 1e-6, 3.7};
      times.push_back({1 + nearly[below(4)], 2 + nearly[below(4)]});
    }
    const int micro_batches = made->options.micro_batches;
    const IdealTime ideal = IdealIteration(*made, config, times, micro_batches);

    ScheduleTimes of_steps;
    of_steps.transfer.resize(made->edges.size());
    for (const StageTime& time : times) {
      of_steps.forward.push_back(time.forward);
      of_steps.backward.push_back(time.backward);
    }
    std::vector<std::vector<PipelineStep>> programs;
    for (int rank = 0; rank < *config.TotalWorldSize(); ++rank)
      programs.push_back(made->Program(StagesOfRank(*made, config, rank)));
    const double total = SimulateSchedule(*made, programs, of_steps)->total;
    EXPECT_NEAR(ideal.milliseconds, total, 1e-9 * total) << ToYaml(config);
    part += ideal.simulated < micro_batches;
  }
  EXPECT_GT(part, 150);
}

// The work of a plan does not grow with the micro-batches.
TEST(ModuleSchedule, FewOfManyMicroBatchesAreSimulated) {
  const auto config =
      Config(DeploymentMode::kHeterogeneous, {.data_parallel_size = 1},
             {.pipeline_model_parallel_size = 32,
              .data_parallel_size = 1,
              .rank_offset = 1},
             33);
  const int many = 1000000000;
  const PipelineSchedule schedule = Make(config, many);
  const IdealTime ideal = IdealIteration(
      schedule, config,
      TimesOfStages(schedule, {{"images", {1, 2}}, {"language", {1, 2}}}),
      many);
  EXPECT_EQ(ideal.milliseconds, (many + 33 - 1) * 3.);
  EXPECT_LE(ideal.simulated, 4 * 34);
}

TEST(ModuleSchedule, RefusesNoMicroBatches) {
  EXPECT_FALSE(
      MakeModuleSchedule(Heterogeneous(), {}, {.micro_batches = 0}).ok());
}

}  // namespace
}  // namespace mimo
