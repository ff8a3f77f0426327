#include "mimo/parallel/schedule_simulator.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

using ::testing::HasSubstr;

PipelineSchedule Schedule(std::vector<PipelineModule> modules,
                          PipelineScheduleOptions options) {
  auto schedule = PipelineSchedule::Create(std::move(modules), options);
  EXPECT_TRUE(schedule.ok()) << schedule.status();
  return *std::move(schedule);
}

ScheduleTimes Uniform(const PipelineSchedule& schedule, double forward,
                      double backward, double transfer = 0) {
  const size_t stages = schedule.stages.size();
  return {std::vector(stages, forward), std::vector(stages, backward),
          std::vector(schedule.edges.size(), transfer)};
}

using Programs = std::vector<std::vector<PipelineStep>>;

// A rank for each stage.
Programs OneEach(const PipelineSchedule& schedule) {
  Programs programs;
  for (int i = 0; i < schedule.stages.size(); ++i) {
    programs.push_back(schedule.Program({i}));
  }
  return programs;
}

SimulatedSchedule Simulate(const PipelineSchedule& schedule,
                           const Programs& programs,
                           const ScheduleTimes& times) {
  auto simulated = SimulateSchedule(schedule, programs, times);
  EXPECT_TRUE(simulated.ok()) << simulated.status();
  return simulated.ok() ? *std::move(simulated) : SimulatedSchedule();
}

// The loops of Megatron-Core's forward_backward_pipelining_without_interleaving
// for one stage, transfers with several modules one after another.
std::vector<PipelineStep> Megatron(const PipelineSchedule& schedule,
                                   int stage) {
  std::vector<int> in, out;
  for (int e = 0; e < schedule.edges.size(); ++e) {
    if (schedule.edges[e].to == stage) in.push_back(e);
    if (schedule.edges[e].from == stage) out.push_back(e);
  }
  std::vector<PipelineStep> steps;
  const auto transfer = [&](const std::vector<int>& edges, int f, int b) {
    for (int e : edges) steps.push_back({PipelineStep::kTransfer, e, f, b});
  };
  const auto forward = [&](int m) {
    steps.push_back({PipelineStep::kForward, stage, m, -1});
  };
  const auto backward = [&](int m) {
    steps.push_back({PipelineStep::kBackward, stage, -1, m});
  };
  const int warm = schedule.WarmUp(stage);
  const int all = schedule.options.micro_batches, steady = all - warm;
  for (int m = 0; m < warm; ++m) {
    transfer(in, m, -1);
    forward(m);
    transfer(out, m, -1);
  }
  if (steady > 0) transfer(in, warm, -1);
  for (int i = 0; i < steady; ++i) {
    forward(warm + i);
    transfer(out, warm + i, i);
    backward(i);
    transfer(in, i + 1 < steady ? warm + i + 1 : -1, i);
  }
  for (int i = steady; i < all; ++i) {
    transfer(out, -1, i);
    backward(i);
    transfer(in, -1, i);
  }
  return steps;
}

Programs MegatronEach(const PipelineSchedule& schedule) {
  Programs programs;
  for (int i = 0; i < schedule.stages.size(); ++i) {
    programs.push_back(Megatron(schedule, i));
  }
  return programs;
}

TEST(Order, OfChainsIsMegatrons) {
  for (int micro_batches = 1; micro_batches <= 12; ++micro_batches) {
    for (int encoder = 1; encoder <= 4; ++encoder) {
      for (int llm = 1; llm <= 4; ++llm) {
        const PipelineSchedule schedule =
            Schedule({{"images", encoder, {"llm"}}, {"llm", llm, {}}},
                     {.micro_batches = micro_batches});
        EXPECT_EQ(OneEach(schedule), MegatronEach(schedule))
            << encoder << " " << llm << " " << micro_batches;
      }
    }
  }
}

// Why the sender's gradients are not taken in Megatron's order: a sender three
// stages above its receiver sends forward 2 before it takes gradient 0, and the
// receiver takes forward 2 after it sends gradient 1.
TEST(Deadlock, MegatronsOrderBesideALongerEncoder) {
  const auto beside = [](int stages) {
    return Schedule(
        {{"audio", 1, {"llm"}}, {"images", stages, {"llm"}}, {"llm", 1, {}}},
        {.micro_batches = 8});
  };
  const PipelineSchedule two = beside(2), three = beside(3);
  Simulate(two, MegatronEach(two), Uniform(two, 1, 2));
  const absl::Status status =
      SimulateSchedule(three, MegatronEach(three), Uniform(three, 1, 2))
          .status();
  EXPECT_THAT(status.message(), HasSubstr("deadlock:\n"));
  EXPECT_THAT(
      status.message(),
      HasSubstr("rank 0 at step 5 (audio.0 -> llm.0 forward 2) waits for "
                "rank 4\n"));
  EXPECT_THAT(status.message(),
              HasSubstr("(audio.0 -> llm.0 forward 1 backward 0) waits for "
                        "rank 0"));
  // Ours: as fast as the longest chain alone.
  EXPECT_EQ(Simulate(three, OneEach(three), Uniform(three, 1, 2)).total,
            (8 + 4 - 1) * 3);
}

TEST(Deadlock, TwoOrdersOfTwoEdges) {
  const PipelineSchedule schedule =
      Schedule({{"a", 1, {"llm"}}, {"b", 1, {"llm"}}, {"llm", 1, {}}},
               {.forward_only = true});
  Programs programs = {schedule.Program({0, 1}), schedule.Program({2})};
  Simulate(schedule, programs, Uniform(schedule, 1, 1));
  std::swap(programs[1][0], programs[1][1]);
  EXPECT_EQ(SimulateSchedule(schedule, programs, Uniform(schedule, 1, 1))
                .status()
                .message(),
            "deadlock:\n"
            "rank 0 at step 2 (a.0 -> llm.0 forward 0) waits for rank 1\n"
            "rank 1 at step 0 (b.0 -> llm.0 forward 0) waits for rank 0");
}

TEST(Deadlock, NobodyReceives) {
  const PipelineSchedule schedule =
      Schedule({{"a", 1, {"llm"}}, {"llm", 1, {}}}, {});
  Programs programs = OneEach(schedule);
  programs[1].erase(programs[1].begin());
  EXPECT_THAT(SimulateSchedule(schedule, programs, Uniform(schedule, 1, 1))
                  .status()
                  .message(),
              HasSubstr("forward 0) waits for rank 1"));
}

TEST(Time, OfAPipelineIsTheClosedForm) {
  for (int stages = 1; stages <= 6; ++stages) {
    for (int m = 1; m <= 17; ++m) {
      for (const auto& [f, b] : {std::pair{1., 2.}, {3., 1.}, {2., 2.}}) {
        const PipelineSchedule schedule =
            Schedule({{"llm", stages, {}}}, {.micro_batches = m});
        const SimulatedSchedule simulated =
            Simulate(schedule, OneEach(schedule), Uniform(schedule, f, b));
        EXPECT_EQ(simulated.total, (m + stages - 1) * (f + b));
        EXPECT_NEAR(simulated.bubble_share, (stages - 1.) / (m + stages - 1),
                    1e-15);
      }
    }
  }
}

TEST(Time, OfEvaluation) {
  const PipelineSchedule schedule =
      Schedule({{"images", 2, {"llm"}}, {"llm", 3, {}}},
               {.micro_batches = 7, .forward_only = true});
  EXPECT_EQ(
      Simulate(schedule, OneEach(schedule), Uniform(schedule, 3, 100)).total,
      (7 + 5 - 1) * 3);
}

TEST(Time, OfThreePhases) {
  // The encoder 2 and 4, the language model's stages 1 and 2 a micro-batch.
  const PipelineSchedule schedule =
      Schedule({{"images", 1, {"llm"}}, {"llm", 4, {}}},
               {.micro_batches = 6, .three_phases = true});
  ScheduleTimes times = Uniform(schedule, 1, 2);
  times.forward[0] = 2, times.backward[0] = 4;
  const Programs programs = {schedule.Program({0, 1}), schedule.Program({0, 2}),
                             schedule.Program({0, 3}),
                             schedule.Program({0, 4})};
  EXPECT_EQ(Simulate(schedule, programs, times).total,
            6 * 2 + (6 + 4 - 1) * 3 + 6 * 4);
}

TEST(Time, OfSharedRanksInOneStageHasNoBubble) {
  const PipelineSchedule schedule =
      Schedule({{"images", 1, {"llm"}}, {"llm", 1, {}}}, {.micro_batches = 5});
  const SimulatedSchedule simulated =
      Simulate(schedule, {schedule.Program({0, 1}), schedule.Program({0, 1})},
               Uniform(schedule, 1, 2));
  EXPECT_EQ(simulated.total, 5 * 2 * 3);
  EXPECT_EQ(simulated.bubble_share, 0);
}

TEST(Time, OfTransfers) {
  // By hand: forward 0 at 0, arrives 1.5; forward 1 is ready at 2; the other
  // side is done with both of 0 at 4.5; gradient 0 and activation 1 move
  // beside each other until 5; and so on.
  const PipelineSchedule schedule =
      Schedule({{"images", 1, {"llm"}}, {"llm", 1, {}}}, {.micro_batches = 2});
  const SimulatedSchedule simulated =
      Simulate(schedule, OneEach(schedule), Uniform(schedule, 1, 2, 0.5));
  EXPECT_EQ(simulated.total, 5 + 3 + 0.5 + 2);
  const std::vector<TimedStep>& images = simulated.ranks[0];
  EXPECT_EQ(images[2].begin, 1.5);  // forward 1
  EXPECT_EQ(images[3].begin, 2.5);  // comes to the transfer,
  EXPECT_EQ(images[3].end, 5);      // of both
}

// A frozen encoder that is no slower than the language model costs its first
// forward.
TEST(Time, OfAFrozenEncoder) {
  const PipelineSchedule schedule =
      Schedule({{"images", 1, {"llm"}, /*frozen_stages=*/1}, {"llm", 2, {}}},
               {.micro_batches = 9});
  EXPECT_EQ(
      Simulate(schedule, OneEach(schedule), Uniform(schedule, 1, 2)).total,
      1 + (9 + 2 - 1) * 3);
}

// The configurations that Megatron-Core tests, a program for each of their
// ranks. Encoders share ranks from 0 on.
struct Module {
  std::string name;
  int tp, pp, dp, offset;
};

void RunsOn(int ranks, const std::vector<Module>& modules) {
  std::vector<PipelineModule> graph;
  for (const Module& module : modules) {
    graph.push_back({module.name, module.pp, {}});
    if (module.name != "llm") graph.back().receivers = {"llm"};
  }
  const int llm = modules.back().pp, encoder = modules.front().pp;
  for (int m : {1, 2, 4, 16}) {
    const PipelineSchedule schedule = Schedule(graph, {.micro_batches = m});
    std::vector<std::vector<int>> held(ranks);
    for (const Module& module : modules) {
      for (int stage = 0; stage < module.pp; ++stage) {
        const int width = module.tp * module.dp;  // pp is the slowest
        for (int i = 0; i < width; ++i) {
          held[module.offset + stage * width + i].push_back(
              schedule.StageOf(module.name, stage));
        }
      }
    }
    Programs programs;
    for (int r = 0; r < ranks; ++r) {
      ASSERT_FALSE(held[r].empty()) << "rank " << r;
      programs.push_back(schedule.Program(held[r]));
    }
    // Encoders that share ranks share the time of a stage.
    ScheduleTimes times = Uniform(schedule, 2, 4);
    const double encoders = modules.size() - 1;
    for (int i = 0; i < schedule.stages.size(); ++i) {
      if (schedule.modules[schedule.stages[i].module].name == "llm") continue;
      times.forward[i] /= encoders, times.backward[i] /= encoders;
    }
    EXPECT_EQ(Simulate(schedule, programs, times).total,
              (m + encoder + llm - 1) * 6);
  }
}

TEST(Configuration, Encoder1Llm1On2Ranks) {
  RunsOn(2, {{"images", 1, 1, 1, 0}, {"llm", 1, 1, 1, 1}});
}
TEST(Configuration, Encoder1LlmPp3On4Ranks) {
  RunsOn(4, {{"images", 1, 1, 1, 0}, {"llm", 1, 3, 1, 1}});
}
TEST(Configuration, EncoderTp2LlmTp2Pp3) {
  RunsOn(8, {{"images", 2, 1, 1, 0}, {"llm", 2, 3, 1, 2}});
}
TEST(Configuration, EncoderTp2Pp2LlmTp2Pp2) {
  RunsOn(8, {{"images", 2, 2, 1, 0}, {"llm", 2, 2, 1, 4}});
}
TEST(Configuration, FanInEncoderDp4LlmTp2Pp2) {
  RunsOn(8, {{"images", 1, 1, 4, 0}, {"llm", 2, 2, 1, 4}});
}
TEST(Configuration, FanOutEncoderTp2Pp2LlmDp4) {
  RunsOn(8, {{"images", 2, 2, 1, 0}, {"llm", 1, 1, 4, 4}});
}
TEST(Configuration, FanInEncoderDp2LlmTp2Pp3) {
  RunsOn(8, {{"images", 1, 1, 2, 0}, {"llm", 2, 3, 1, 2}});
}
TEST(Configuration, DualEncoderOn2Ranks) {
  RunsOn(2,
         {{"images", 1, 1, 1, 0}, {"audio", 1, 1, 1, 0}, {"llm", 1, 1, 1, 1}});
}
TEST(Configuration, DualEncoderTp2Pp2On8Ranks) {
  RunsOn(8,
         {{"images", 2, 2, 1, 0}, {"audio", 2, 2, 1, 0}, {"llm", 2, 2, 1, 4}});
}

}  // namespace
}  // namespace mimo
