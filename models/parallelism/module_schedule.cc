#include "models/parallelism/module_schedule.h"

#include <algorithm>

#include "absl/log/check.h"

namespace mimo {

absl::StatusOr<PipelineSchedule> MakeModuleSchedule(
    const MimoParallelismConfig& parallelism, const ModuleTopology& topology,
    const std::map<std::string, int>& frozen_stages,
    PipelineScheduleOptions options) {
  std::vector<PipelineModule> modules;
  int longest = 1;
  for (const auto& [name, receivers] : topology) {
    const int stages = parallelism.Find(name)->pipeline_model_parallel_size;
    const auto frozen = frozen_stages.find(name);
    modules.push_back({name, stages, receivers,
                       frozen == frozen_stages.end() ? 0 : frozen->second});
    longest = std::max(longest, stages);
  }
  options.three_phases =
      parallelism.deployment_mode != DeploymentMode::kHeterogeneous;
  if (options.three_phases && longest == 1) {
    options.micro_batches = std::min(options.micro_batches, 1);
  }
  return PipelineSchedule::Create(std::move(modules), options);
}

std::vector<int> StagesOfRank(const PipelineSchedule& schedule,
                              const MimoParallelismConfig& parallelism,
                              int rank) {
  std::vector<int> held;
  for (int i = 0; i < schedule.stages.size(); ++i) {
    const PipelineStage& at = schedule.stages[i];
    const PipelineModule& module = schedule.modules[at.module];
    const auto span = parallelism.Span(module.name);
    CHECK_OK(span.status());
    // pp is the slowest dimension of a module's grid.
    const int64_t width = (span->end - span->begin) / module.stages;
    const int64_t begin = span->begin + at.stage * width;
    if (begin <= rank && rank < begin + width) held.push_back(i);
  }
  return held;
}

std::vector<StageTime> TimesOfStages(
    const PipelineSchedule& schedule,
    const std::map<std::string, StageTime>& times) {
  std::vector<StageTime> all;
  for (const PipelineStage& at : schedule.stages)
    all.push_back(times.at(schedule.modules[at.module].name));
  return all;
}

IdealTime IdealIteration(const PipelineSchedule& schedule,
                         const MimoParallelismConfig& parallelism,
                         absl::Span<const StageTime> times, int micro_batches) {
  ScheduleTimes of_steps;
  for (size_t i = 0; i < schedule.stages.size(); ++i) {
    of_steps.forward.push_back(times[i].forward);
    of_steps.backward.push_back(schedule.stages[i].backward ? times[i].backward
                                                            : 0);
  }
  of_steps.transfer.resize(schedule.edges.size());
  // Ranks of the same stages do the same: one of each is simulated.
  std::map<std::vector<int>, int64_t> ranks;
  const auto world = parallelism.TotalWorldSize();
  CHECK_OK(world.status());
  for (int rank = 0; rank < *world; ++rank) {
    const std::vector<int> held = StagesOfRank(schedule, parallelism, rank);
    if (!held.empty()) ++ranks[held];
  }
  std::vector<std::vector<PipelineStep>> programs;
  double busy = 0;  // of one micro-batch, over all ranks
  int64_t working = 0;
  for (const auto& [held, count] : ranks) {
    programs.push_back(schedule.Program(held));
    working += count;
    for (int stage : held) {
      busy += count * (of_steps.forward[stage] + of_steps.backward[stage]);
    }
  }
  const auto simulated = SimulateSchedule(schedule, programs, of_steps);
  CHECK_OK(simulated.status());  // no schedule has a deadlock
  const double turns = micro_batches / schedule.options.micro_batches;
  const double total = turns * simulated->total;
  return {total, total > 0 ? 1 - busy * micro_batches / (total * working) : 0};
}

}  // namespace mimo
