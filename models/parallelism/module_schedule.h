// The schedule of a model's modules on their ranks.
//   heterogeneous            1F1B over the topology, all modules in one
//   colocated, homogeneous   three phases; where no module has a pipeline, of
//                            one micro-batch, to be run for each in turn
#ifndef MIMO_MODELS_PARALLELISM_MODULE_SCHEDULE_H_
#define MIMO_MODELS_PARALLELISM_MODULE_SCHEDULE_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "mimo/parallel/pipeline_schedule.h"
#include "mimo/parallel/schedule_simulator.h"
#include "models/parallelism/mimo_parallelism.h"

namespace mimo {

// `parallelism` is finalized. `frozen_stages`: of modules, how many of the
// first have no trained parameter; of others none. three_phases is set here.
// Errors: fewer than one micro-batch.
absl::StatusOr<PipelineSchedule> MakeModuleSchedule(
    const MimoParallelismConfig& parallelism,
    const std::map<std::string, int>& frozen_stages,
    PipelineScheduleOptions options);

// The stages that `rank` has, one of each module that it is part of.
std::vector<int> StagesOfRank(const PipelineSchedule& schedule,
                              const MimoParallelismConfig& parallelism,
                              int rank);

struct IdealTime {
  double milliseconds;  // of an iteration's forwards and backwards
  double bubble_share;  // of its ranks' time, with neither
  int simulated;        // micro-batches; all others take what these do
};

// Of `micro_batches`, transfers taking no time. `times` of each stage. Only as
// many are simulated as it takes until all stages keep one pace.
IdealTime IdealIteration(const PipelineSchedule& schedule,
                         const MimoParallelismConfig& parallelism,
                         absl::Span<const StageTime> times, int micro_batches);
// Where all stages of a module take alike; `times` has every module.
std::vector<StageTime> TimesOfStages(
    const PipelineSchedule& schedule,
    const std::map<std::string, StageTime>& times);

}  // namespace mimo

#endif  // MIMO_MODELS_PARALLELISM_MODULE_SCHEDULE_H_
