#include "models/parallelism/module_schedule.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <tuple>

#include "absl/log/check.h"

namespace mimo {
namespace {

// More micro-batches than lie between steps that are done at one time.
int Reach(const PipelineSchedule& schedule) {
  return schedule.total_stages + 1;
}

// How much later a rank ends with each micro-batch more, if in the middle of
// its program, for twice as long as a step may wait for another's, every step
// comes as much later than the same one of the micro-batch before. As steps
// depend on nothing else, it then goes on so.
std::optional<double> Pace(const PipelineSchedule& schedule,
                           absl::Span<const TimedStep> steps) {
  // Ends by what is done, then micro-batch.
  std::map<std::tuple<int, int, bool>, std::vector<double>> ends;
  for (const auto& [step, begin, end] : steps) {
    if (step.forward >= 0) ends[{step.kind, step.at, false}].push_back(end);
    if (step.backward >= 0) ends[{step.kind, step.at, true}].push_back(end);
  }
  std::map<int, double> of_phases;
  const double tolerance = 1e-12 * steps.back().end;
  for (const auto& [what, at] : ends) {
    const auto& [kind, place, backward] = what;
    const int from =
        kind == PipelineStep::kTransfer ? schedule.edges[place].from : place;
    const bool sends =
        !schedule.modules[schedule.stages[from].module].receivers.empty();
    const int phase =
        schedule.options.three_phases && sends ? (backward ? 1 : -1) : 0;
    const int middle = at.size() / 2;
    const double pace =
        of_phases.emplace(phase, at[middle] - at[middle - 1]).first->second;
    for (int m = middle - Reach(schedule); m < middle + Reach(schedule); ++m) {
      if (std::abs(at[m] - at[m - 1] - pace) > tolerance) return std::nullopt;
    }
  }
  double pace = 0;
  for (const auto& [phase, of_phase] : of_phases) pace += of_phase;
  return pace;
}

// When the last rank ends, if it is known how all go on after what was
// simulated: with so many micro-batches more.
std::optional<double> EndOf(const PipelineSchedule& schedule,
                            const SimulatedSchedule& simulated, int more) {
  if (more == 0) return simulated.total;
  double last = 0;
  for (const std::vector<TimedStep>& steps : simulated.ranks) {
    const std::optional<double> pace = Pace(schedule, steps);
    if (!pace) return std::nullopt;
    last = std::max(last, steps.back().end + more * *pace);
  }
  return last;
}

}  // namespace

absl::StatusOr<PipelineSchedule> MakeModuleSchedule(
    const MimoParallelismConfig& parallelism,
    const std::map<std::string, int>& frozen_stages,
    PipelineScheduleOptions options) {
  std::vector<PipelineModule> modules;
  int longest = 1;
  for (const auto& [name, receivers] : parallelism.Topology()) {
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
  double busy = 0;  // of one micro-batch, over all ranks
  int64_t working = 0;
  for (const auto& [held, count] : ranks) {
    working += count;
    for (int stage : held) {
      busy += count * (of_steps.forward[stage] + of_steps.backward[stage]);
    }
  }
  const int all = schedule.options.micro_batches;
  PipelineSchedule part = schedule;
  std::optional<double> end;
  for (int64_t n = 4 * Reach(schedule); !end; n *= 2) {
    part.options.micro_batches = std::min<int64_t>(n, all);
    std::vector<std::vector<PipelineStep>> programs;
    for (const auto& [held, count] : ranks)
      programs.push_back(part.Program(held));
    const auto simulated = SimulateSchedule(part, programs, of_steps);
    CHECK_OK(simulated.status());  // no schedule has a deadlock
    end = EndOf(part, *simulated, all - part.options.micro_batches);
  }
  const double turns = micro_batches / all;
  const double total = turns * *end;
  return {total, total > 0 ? 1 - busy * micro_batches / (total * working) : 0,
          part.options.micro_batches};
}

}  // namespace mimo
