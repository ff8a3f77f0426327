// What holds of every schedule, on random ones: any graph of modules, any first
// stages of them frozen, stages on ranks of their own or shared at random, any
// times.
#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "mimo/parallel/pipeline_schedule.h"
#include "mimo/parallel/schedule_simulator.h"

namespace mimo {
namespace {

struct Draw {
  std::mt19937 bits;
  int Below(int end) { return std::uniform_int_distribution(0, end - 1)(bits); }
  bool OneIn(int n) { return Below(n) == 0; }
};

PipelineSchedule RandomSchedule(Draw& draw) {
  std::vector<PipelineModule> modules(1 + draw.Below(6));
  for (int i = 0; i < modules.size(); ++i) {
    const int stages = 1 + draw.Below(5);
    const int frozen = draw.OneIn(3)   ? stages
                       : draw.OneIn(3) ? draw.Below(stages)
                                       : 0;
    modules[i] = {"m" + std::to_string(i), stages, {}, frozen};
    for (int j = 0; j < i; ++j) {  // the last sends to none
      if (draw.OneIn(2)) modules[j].receivers.push_back(modules[i].name);
    }
  }
  std::shuffle(modules.begin(), modules.end(), draw.bits);
  const auto schedule = PipelineSchedule::Create(
      modules, {.micro_batches = 1 + draw.Below(draw.OneIn(4) ? 24 : 6),
                .forward_only = draw.OneIn(4),
                .three_phases = draw.OneIn(4)});
  EXPECT_TRUE(schedule.ok()) << schedule.status();
  return *schedule;
}

// [ranks] stages; each stage is on some rank.
std::vector<std::vector<int>> RandomRanks(Draw& draw, int stages) {
  std::vector<std::set<int>> held;
  const bool shared = draw.OneIn(2);
  for (int i = 0; i < stages; ++i) {
    for (int copies = 1 + draw.Below(2); copies > 0; --copies) {
      if (held.empty() || !shared || draw.OneIn(2)) held.emplace_back();
      held[shared ? draw.Below(held.size()) : held.size() - 1].insert(i);
    }
  }
  std::vector<std::vector<int>> ranks;
  for (const std::set<int>& stages_of_rank : held) {
    if (stages_of_rank.empty()) continue;
    ranks.emplace_back(stages_of_rank.begin(), stages_of_rank.end());
  }
  return ranks;
}

// Of one stage on one rank: the places of its steps in the program.
struct Places {
  std::map<int, int> forward, backward;  // by micro-batch
};

void CheckProgram(const PipelineSchedule& schedule,
                  const std::vector<int>& held,
                  const std::vector<PipelineStep>& program) {
  const int all = schedule.options.micro_batches;
  std::map<int, Places> at, along;  // stages, edges
  for (int i = 0; i < program.size(); ++i) {
    const PipelineStep& step = program[i];
    Places& places =
        (step.kind == PipelineStep::kTransfer ? along : at)[step.at];
    const auto once = [&](std::map<int, int>& places, int m) {
      if (m < 0) return;
      EXPECT_LT(m, all);
      EXPECT_EQ(m, places.size()) << "in order";
      EXPECT_TRUE(places.emplace(m, i).second) << "once";
    };
    once(places.forward, step.forward);
    once(places.backward, step.backward);
    if (step.kind == PipelineStep::kForward) {
      EXPECT_EQ(step.backward, -1);
    }
    if (step.kind == PipelineStep::kBackward) {
      EXPECT_EQ(step.forward, -1);
    }
  }
  EXPECT_EQ(at.size(), held.size());
  for (int stage : held) {
    const PipelineStage& info = schedule.stages[stage];
    Places& own = at[stage];
    EXPECT_EQ(own.forward.size(), all);
    EXPECT_EQ(own.backward.size(), info.backward ? all : 0);
    const bool sends = !schedule.modules[info.module].receivers.empty();
    const int in_flight = schedule.options.three_phases && sends
                              ? all
                              : schedule.WarmUp(stage) + 1;
    EXPECT_EQ(schedule.InFlight(stage),
              info.backward ? std::min(in_flight, all) : 1);
    for (const auto& [m, place] : own.backward) {
      EXPECT_GT(place, own.forward.at(m));
      // At most in_flight between forward and backward, and W are reached.
      if (m + in_flight < all) {
        EXPECT_LT(place, own.forward.at(m + in_flight));
      }
      if (m + in_flight <= all) {
        EXPECT_GT(place, own.forward.at(m + in_flight - 1));
      }
    }
    for (int e = 0; e < schedule.edges.size(); ++e) {
      const auto [from, to] = schedule.edges[e];
      if (from != stage && to != stage) continue;
      Places& moves = along[e];
      EXPECT_EQ(moves.forward.size(), all);
      EXPECT_EQ(moves.backward.size(),
                schedule.stages[from].backward ? all : 0);
      // An edge that one rank is at both ends of counts for both.
      for (const auto& [m, place] : moves.forward) {
        if (to == stage) {
          EXPECT_LT(place, own.forward.at(m));
        }
        if (from == stage) {
          EXPECT_GT(place, own.forward.at(m));
        }
      }
      for (const auto& [m, place] : moves.backward) {
        if (to == stage) {
          EXPECT_GT(place, own.backward.at(m));
        }
        if (from == stage) {
          EXPECT_LT(place, own.backward.at(m));
        }
      }
      if (from != stage || info.backward || schedule.options.three_phases) {
        continue;
      }
      // Outputs that wait to be sent: the one at hand, and one for every two
      // stages that the edge skips.
      const int skipped =
          schedule.stages[to].current_stage - info.current_stage - 1;
      const int waiting = 1 + (skipped + 1) / 2;
      for (const auto& [m, place] : moves.forward) {
        if (m + waiting < all) {
          EXPECT_LT(place, own.forward.at(m + waiting));
        }
      }
    }
  }
}

TEST(ScheduleProperty, NeverADeadlockEachMicroBatchOnce) {
  Draw draw{std::mt19937(7)};
  for (int i = 0; i < 4000; ++i) {
    const PipelineSchedule schedule = RandomSchedule(draw);
    const auto ranks = RandomRanks(draw, schedule.stages.size());
    std::vector<std::vector<PipelineStep>> programs;
    // By edge: what all ranks at its ends are to call, which is the same.
    std::map<int, std::vector<PipelineStep>> calls;
    for (const std::vector<int>& held : ranks) {
      programs.push_back(schedule.Program(held));
      CheckProgram(schedule, held, programs.back());
      std::map<int, std::vector<PipelineStep>> own;
      for (const PipelineStep& step : programs.back()) {
        if (step.kind == PipelineStep::kTransfer) own[step.at].push_back(step);
      }
      for (const auto& [edge, steps] : own) {
        EXPECT_EQ(calls.emplace(edge, steps).first->second, steps);
      }
    }
    ScheduleTimes times;
    for (int s = 0; s < schedule.stages.size(); ++s) {
      times.forward.push_back(draw.Below(10));
      times.backward.push_back(draw.Below(10));
    }
    for (int e = 0; e < schedule.edges.size(); ++e) {
      times.transfer.push_back(draw.Below(3));
    }
    const auto simulated = SimulateSchedule(schedule, programs, times);
    ASSERT_TRUE(simulated.ok()) << simulated.status();
    // Steps follow one another; no rank does more than the time there is.
    double busy = 0;
    for (const std::vector<TimedStep>& steps : simulated->ranks) {
      double now = 0, own = 0;
      for (const TimedStep& step : steps) {
        EXPECT_EQ(step.begin, now);
        EXPECT_GE(step.end, now);
        now = step.end;
        if (step.step.kind != PipelineStep::kTransfer) own += now - step.begin;
      }
      EXPECT_LE(now, simulated->total);
      busy += own;
    }
    EXPECT_NEAR(busy,
                simulated->total * ranks.size() * (1 - simulated->bubble_share),
                1e-9 * busy + 1e-9);
    if (HasFailure()) {
      for (const PipelineModule& module : schedule.modules) {
        std::string to;
        for (const std::string& name : module.receivers) to += " " + name;
        ADD_FAILURE() << "schedule " << i << ": " << module.name << " PP "
                      << module.stages << " frozen " << module.frozen_stages
                      << " to" << to;
      }
      return;
    }
  }
}

// Backwards are of what is trained and all that comes behind it, no other.
TEST(ScheduleProperty, GradientsGoWhereSomethingIsTrained) {
  Draw draw{std::mt19937(13)};
  for (int i = 0; i < 1000; ++i) {
    const PipelineSchedule schedule = RandomSchedule(draw);
    std::vector<bool> wanted;
    for (const PipelineStage& at : schedule.stages) {
      wanted.push_back(!schedule.options.forward_only &&
                       at.stage >= schedule.modules[at.module].frozen_stages);
    }
    for (size_t turn = 0; turn < wanted.size(); ++turn) {
      for (const auto [from, to] : schedule.edges) {
        if (wanted[from]) wanted[to] = true;
      }
    }
    for (size_t s = 0; s < wanted.size(); ++s) {
      EXPECT_EQ(schedule.stages[s].backward, wanted[s]) << i;
    }
  }
}

// Of the same micro-batch: no stage before those that feed it, forward, nor
// after those that it feeds, backward.
TEST(ScheduleProperty, TimesFollowTheGraph) {
  Draw draw{std::mt19937(11)};
  for (int i = 0; i < 500; ++i) {
    const PipelineSchedule schedule = RandomSchedule(draw);
    std::vector<std::vector<PipelineStep>> programs;
    for (int s = 0; s < schedule.stages.size(); ++s) {
      programs.push_back(schedule.Program({s}));
    }
    const size_t stages = schedule.stages.size();
    const auto simulated =
        SimulateSchedule(schedule, programs,
                         {std::vector(stages, 1.), std::vector(stages, 2.),
                          std::vector(schedule.edges.size(), 0.25)});
    ASSERT_TRUE(simulated.ok()) << simulated.status();
    std::vector<std::map<int, TimedStep>> forward(stages), backward(stages);
    for (const std::vector<TimedStep>& steps : simulated->ranks) {
      for (const TimedStep& step : steps) {
        if (step.step.kind == PipelineStep::kForward) {
          forward[step.step.at][step.step.forward] = step;
        } else if (step.step.kind == PipelineStep::kBackward) {
          backward[step.step.at][step.step.backward] = step;
        }
      }
    }
    for (const auto [from, to] : schedule.edges) {
      for (int m = 0; m < schedule.options.micro_batches; ++m) {
        EXPECT_GE(forward[to][m].begin, forward[from][m].end + 0.25);
        if (schedule.stages[from].backward) {
          EXPECT_GE(backward[from][m].begin, backward[to][m].end + 0.25);
        }
      }
    }
  }
}

}  // namespace
}  // namespace mimo
