#include "mimo/parallel/pipeline_schedule.h"

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

PipelineSchedule Schedule(std::vector<PipelineModule> modules,
                          PipelineScheduleOptions options) {
  auto schedule = PipelineSchedule::Create(std::move(modules), options);
  EXPECT_TRUE(schedule.ok()) << schedule.status();
  return *std::move(schedule);
}

std::vector<std::string> Text(const PipelineSchedule& schedule,
                              const std::vector<int>& held) {
  std::vector<std::string> lines;
  for (const PipelineStep& step : schedule.Program(held)) {
    lines.push_back(schedule.Describe(step));
  }
  return lines;
}

// The stages' W for 8 micro-batches, in order.
std::vector<int> WarmUps(std::vector<PipelineModule> modules) {
  const PipelineSchedule schedule =
      Schedule(std::move(modules), {.micro_batches = 8});
  std::vector<int> warm_ups;
  for (int i = 0; i < schedule.stages.size(); ++i) {
    warm_ups.push_back(schedule.WarmUp(i));
  }
  return warm_ups;
}

TEST(PipelineSchedule, LongestPathCountsStages) {
  const PipelineSchedule schedule = Schedule({{"image", 1, {"language"}},
                                              {"audio", 1, {"language"}},
                                              {"language", 2, {"generator"}},
                                              {"generator", 1, {}}},
                                             {});
  EXPECT_EQ(schedule.total_stages, 4);
  EXPECT_THAT(
      schedule.stages,
      ElementsAre(PipelineStage{0, 0, 0, true}, PipelineStage{1, 0, 0, true},
                  PipelineStage{2, 0, 1, true},
                  PipelineStage{2, 1, 2, true},  // "a rank in stage 1"
                  PipelineStage{3, 0, 3, true}));
  EXPECT_THAT(schedule.edges,
              ElementsAre(PipelineEdge{0, 2}, PipelineEdge{1, 2},
                          PipelineEdge{2, 3}, PipelineEdge{3, 4}));
  EXPECT_EQ(schedule.StageOf("language", 1), 3);
}

TEST(PipelineSchedule, OrderOfModulesDoesNotMatter) {
  const PipelineSchedule schedule = Schedule({{"language", 2, {}},
                                              {"b", 3, {"language"}},
                                              {"a", 1, {"b", "language"}}},
                                             {});
  EXPECT_EQ(schedule.total_stages, 6);
  EXPECT_EQ(schedule.stages[schedule.StageOf("language")].current_stage, 4);
  EXPECT_EQ(schedule.stages[schedule.StageOf("a")].current_stage, 0);
}

TEST(PipelineSchedule, Refuses) {
  const std::pair<std::vector<PipelineModule>, const char*> cases[] = {
      {{{"a", 1, {"b"}}, {"b", 1, {"a"}}, {"c", 1, {}}}, "contains cycles"},
      {{{"a", 1, {"a"}}, {"c", 1, {}}}, "contains cycles (at or before 'a')"},
      {{{"a", 1, {"b"}}, {"b", 1, {"a"}}}, "at least one terminal"},
      {{}, "at least one terminal"},
      {{{"a", 0, {}}}, "'a' has 0 stages"},
      {{{"a", 1, {}}, {"a", 1, {}}}, "'a' given twice"},
      {{{"a", 1, {"b"}}}, "'a' sends to 'b', wanted a module"},
      {{{"a", 1, {"b", "b"}}, {"b", 1, {}}}, "'a' sends to 'b' twice"},
  };
  for (const auto& [modules, want] : cases) {
    EXPECT_THAT(PipelineSchedule::Create(modules, {}).status().message(),
                HasSubstr(want));
  }
  EXPECT_THAT(PipelineSchedule::Create({{"a", 1, {}}}, {.micro_batches = 0})
                  .status()
                  .message(),
              HasSubstr("micro_batches 0"));
}

TEST(WarmUp, EncoderPp1LlmPp1) {
  EXPECT_THAT(WarmUps({{"images", 1, {"llm"}}, {"llm", 1, {}}}),
              ElementsAre(1, 0));
}

TEST(WarmUp, EncoderPp1LlmPp3) {
  EXPECT_THAT(WarmUps({{"images", 1, {"llm"}}, {"llm", 3, {}}}),
              ElementsAre(3, 2, 1, 0));
}

TEST(WarmUp, EncoderPp2LlmPp2) {
  EXPECT_THAT(WarmUps({{"images", 2, {"llm"}}, {"llm", 2, {}}}),
              ElementsAre(3, 2, 1, 0));
}

TEST(WarmUp, EncodersPp1AndPp2LlmPp2) {
  // The one-stage encoder is at stage 0, though two from the end.
  EXPECT_THAT(
      WarmUps({{"audio", 1, {"llm"}}, {"images", 2, {"llm"}}, {"llm", 2, {}}}),
      ElementsAre(3, 3, 2, 1, 0));
}

TEST(WarmUp, AtMostMicroBatches) {
  const PipelineSchedule schedule =
      Schedule({{"llm", 5, {}}}, {.micro_batches = 2});
  EXPECT_EQ(schedule.WarmUp(0), 2);
  EXPECT_EQ(schedule.WarmUp(3), 1);
}

TEST(Program, TwoStages) {
  const PipelineSchedule schedule =
      Schedule({{"images", 1, {"llm"}}, {"llm", 1, {}}}, {.micro_batches = 3});
  EXPECT_THAT(Text(schedule, {0}),
              ElementsAre("images.0 forward 0",  // warm-up
                          "images.0 -> llm.0 forward 0",
                          "images.0 forward 1",  // steady
                          "images.0 -> llm.0 forward 1 backward 0",
                          "images.0 backward 0",  //
                          "images.0 forward 2",
                          "images.0 -> llm.0 forward 2 backward 1",
                          "images.0 backward 1",
                          "images.0 -> llm.0 backward 2",  // cool-down
                          "images.0 backward 2"));
  EXPECT_THAT(
      Text(schedule, {1}),
      ElementsAre("images.0 -> llm.0 forward 0",  //
                  "llm.0 forward 0", "llm.0 backward 0",
                  "images.0 -> llm.0 forward 1 backward 0", "llm.0 forward 1",
                  "llm.0 backward 1", "images.0 -> llm.0 forward 2 backward 1",
                  "llm.0 forward 2", "llm.0 backward 2",
                  "images.0 -> llm.0 backward 2"));
}

TEST(Program, OneModuleTakesMicroBatchesInTurn) {
  const PipelineSchedule schedule =
      Schedule({{"llm", 1, {}}}, {.micro_batches = 2});
  EXPECT_THAT(Text(schedule, {0}),
              ElementsAre("llm.0 forward 0", "llm.0 backward 0",
                          "llm.0 forward 1", "llm.0 backward 1"));
}

TEST(Program, ReceiverTakesAllEncodersAtOnce) {
  const PipelineSchedule schedule =
      Schedule({{"audio", 1, {"llm"}}, {"images", 2, {"llm"}}, {"llm", 1, {}}},
               {.micro_batches = 2});
  EXPECT_THAT(
      Text(schedule, {schedule.StageOf("llm")}),
      ElementsAre("audio.0 -> llm.0 forward 0",
                  "images.1 -> llm.0 forward 0",  //
                  "llm.0 forward 0", "llm.0 backward 0",
                  "audio.0 -> llm.0 forward 1 backward 0",
                  "images.1 -> llm.0 forward 1 backward 0", "llm.0 forward 1",
                  "llm.0 backward 1", "audio.0 -> llm.0 backward 1",
                  "images.1 -> llm.0 backward 1"));
}

TEST(Program, EvaluationSendsThenReceives) {
  const PipelineSchedule schedule =
      Schedule({{"images", 1, {"llm"}}, {"llm", 2, {}}},
               {.micro_batches = 2, .forward_only = true});
  EXPECT_THAT(
      Text(schedule, {1}),
      ElementsAre("images.0 -> llm.0 forward 0", "llm.0 forward 0",
                  "llm.0 -> llm.1 forward 0", "images.0 -> llm.0 forward 1",
                  "llm.0 forward 1", "llm.0 -> llm.1 forward 1"));
}

TEST(Program, FrozenEncoderHasNoBackward) {
  const PipelineSchedule schedule =
      Schedule({{"images", 1, {"llm"}, /*frozen_stages=*/1}, {"llm", 1, {}}},
               {.micro_batches = 2});
  EXPECT_THAT(Text(schedule, {0}),
              ElementsAre("images.0 forward 0", "images.0 -> llm.0 forward 0",
                          "images.0 forward 1", "images.0 -> llm.0 forward 1"));
  EXPECT_THAT(Text(schedule, {1}),
              ElementsAre("images.0 -> llm.0 forward 0", "llm.0 forward 0",
                          "llm.0 backward 0", "images.0 -> llm.0 forward 1",
                          "llm.0 forward 1", "llm.0 backward 1"));
}

TEST(Program, FrozenModulePassesGradientsOn) {
  const PipelineSchedule schedule = Schedule(
      {{"images", 1, {"llm"}}, {"llm", 1, {}, /*frozen_stages=*/1}}, {});
  EXPECT_THAT(Text(schedule, {1}),
              ElementsAre("images.0 -> llm.0 forward 0", "llm.0 forward 0",
                          "llm.0 backward 0", "images.0 -> llm.0 backward 0"));
}

TEST(Program, FrozenFirstStageGetsNoGradients) {
  const PipelineSchedule schedule =
      Schedule({{"images", 2, {"llm"}, /*frozen_stages=*/1}, {"llm", 1, {}}},
               {.micro_batches = 2});
  EXPECT_EQ(schedule.InFlight(0), 1);
  EXPECT_THAT(
      Text(schedule, {0}),
      ElementsAre("images.0 forward 0", "images.0 -> images.1 forward 0",
                  "images.0 forward 1", "images.0 -> images.1 forward 1"));
  EXPECT_THAT(
      Text(schedule, {1}),
      ElementsAre("images.0 -> images.1 forward 0", "images.1 forward 0",
                  "images.1 -> llm.0 forward 0",
                  "images.0 -> images.1 forward 1", "images.1 forward 1",
                  "images.1 -> llm.0 forward 1 backward 0",
                  "images.1 backward 0", "images.1 -> llm.0 backward 1",
                  "images.1 backward 1"));
}

// Ranks of both modules: three phases.
TEST(Program, ThreePhases) {
  const PipelineSchedule schedule =
      Schedule({{"images", 1, {"llm"}}, {"llm", 2, {}}},
               {.micro_batches = 2, .three_phases = true});
  EXPECT_THAT(
      Text(schedule, {0, 1}),
      ElementsAre("images.0 forward 0", "images.0 -> llm.0 forward 0",
                  "images.0 forward 1", "images.0 -> llm.0 forward 1",
                  "llm.0 forward 0",  //
                  "llm.0 -> llm.1 forward 0", "llm.0 forward 1",
                  "llm.0 -> llm.1 forward 1 backward 0", "llm.0 backward 0",
                  "llm.0 -> llm.1 backward 1",
                  "llm.0 backward 1",  //
                  "images.0 -> llm.0 backward 0", "images.0 backward 0",
                  "images.0 -> llm.0 backward 1", "images.0 backward 1"));
  EXPECT_THAT(
      Text(schedule, {0, 2}),
      ElementsAre("images.0 forward 0", "images.0 -> llm.0 forward 0",
                  "images.0 forward 1", "images.0 -> llm.0 forward 1",
                  "llm.0 -> llm.1 forward 0", "llm.1 forward 0",
                  "llm.1 backward 0", "llm.0 -> llm.1 forward 1 backward 0",
                  "llm.1 forward 1", "llm.1 backward 1",
                  "llm.0 -> llm.1 backward 1",  //
                  "images.0 -> llm.0 backward 0", "images.0 backward 0",
                  "images.0 -> llm.0 backward 1", "images.0 backward 1"));
}

// Ranks of both modules, each in one stage: two micro-batches at a time, so the
// encoder keeps two, whatever M.
TEST(Program, SharedRanksInOnePipeline) {
  const PipelineSchedule schedule =
      Schedule({{"images", 1, {"llm"}}, {"llm", 1, {}}}, {.micro_batches = 2});
  EXPECT_THAT(
      Text(schedule, {0, 1}),
      ElementsAre("images.0 forward 0", "images.0 -> llm.0 forward 0",
                  "llm.0 forward 0", "llm.0 backward 0", "images.0 forward 1",
                  "images.0 -> llm.0 forward 1 backward 0",
                  "images.0 backward 0", "llm.0 forward 1", "llm.0 backward 1",
                  "images.0 -> llm.0 backward 1", "images.0 backward 1"));
}

}  // namespace
}  // namespace mimo
