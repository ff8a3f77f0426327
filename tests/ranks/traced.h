// What `mimo train --trace` wrote.
#ifndef MIMO_TESTS_RANKS_TRACED_H_
#define MIMO_TESTS_RANKS_TRACED_H_

#include <algorithm>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "mimo/config/config_node.h"
#include "mimo/parallel/schedule_simulator.h"
#include "models/parallelism/mimo_parallelism.h"
#include "models/parallelism/module_schedule.h"
#include "tests/ranks/layout.h"
#include "tests/testing/run_mimo.h"

namespace mimo {

// Of a range, in microseconds.
inline double Begin(const nlohmann::json& range) { return range["ts"]; }
inline double End(const nlohmann::json& range) {
  return range["ts"].get<double>() + range["dur"].get<double>();
}

inline std::vector<nlohmann::json> EventsOf(const std::string& path) {
  return nlohmann::json::parse(Read(path))["traceEvents"];
}

// The ranges of a trace's ranks.
inline std::vector<std::vector<nlohmann::json>> RangesOf(
    const std::string& path, int ranks) {
  std::vector<std::vector<nlohmann::json>> ranges(ranks);
  for (const nlohmann::json& event : EventsOf(path))
    if (event["ph"] == "X") ranges.at(event["pid"]).push_back(event);
  return ranges;
}

// An iteration's forwards and backwards, all else taking no time.
inline IdealTime Ideal(const Layout& layout, const StageTimes& times,
                       int micro_batches) {
  const MimoParallelismConfig parallelism = *ReadParallelism(
      (*ParseYaml(layout.Yaml(), "layout"))["parallelism"], layout.ranks);
  const PipelineSchedule schedule =
      *MakeModuleSchedule(parallelism, {}, {.micro_batches = micro_batches});
  std::vector<StageTime> of_stages;
  for (const PipelineStage& at : schedule.stages)
    of_stages.push_back(times.at({schedule.modules[at.module].name, at.stage}));
  return IdealIteration(schedule, parallelism, of_stages, micro_batches);
}

struct TracedIteration {
  StageTimes times;  // means
  IdealTime ideal;   // by these
  double over;       // how much longer it took, as a share of the ideal
};

// The one that came nearest to its ideal: loads of the machine lengthen some.
inline TracedIteration BestIteration(const std::string& path,
                                     const Layout& layout, int iterations,
                                     int micro_batches) {
  struct Measured {  // in milliseconds
    double begin = std::numeric_limits<double>::infinity(), end = 0;
    StageTimes sums;
    std::map<std::pair<std::string, int>, int> forwards;
  };
  std::map<int, Measured> measured;
  for (const auto& ranges : RangesOf(path, layout.ranks)) {
    for (const nlohmann::json& range : ranges) {
      const bool forward = range["name"] == "forward";
      if (!forward && range["name"] != "backward") continue;
      const nlohmann::json& args = range["args"];
      const std::pair<std::string, int> stage(args["module"], args["stage"]);
      Measured& iteration = measured[args["iteration"]];
      iteration.begin = std::min(iteration.begin, Begin(range) / 1e3);
      iteration.end = std::max(iteration.end, End(range) / 1e3);
      StageTime& sum = iteration.sums[stage];
      (forward ? sum.forward : sum.backward) +=
          range["dur"].get<double>() / 1e3;
      iteration.forwards[stage] += forward;
    }
  }
  EXPECT_EQ(static_cast<int>(measured.size()), iterations);
  TracedIteration best = {.over = std::numeric_limits<double>::infinity()};
  for (const auto& [number, iteration] : measured) {
    StageTimes times = iteration.sums;
    for (auto& [stage, time] : times) {  // as many backwards
      time.forward /= iteration.forwards.at(stage);
      time.backward /= iteration.forwards.at(stage);
    }
    const IdealTime ideal = Ideal(layout, times, micro_batches);
    const double over =
        (iteration.end - iteration.begin) / ideal.milliseconds - 1;
    if (over < best.over) best = {times, ideal, over};
  }
  return best;
}

}  // namespace mimo

#endif  // MIMO_TESTS_RANKS_TRACED_H_
