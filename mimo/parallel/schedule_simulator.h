// What a schedule takes at best: when each step of each rank begins and ends,
// given how long forwards, backwards and transfers take.
//
// A rank runs its program step by step. What moves along an edge needs all
// ranks of its two stages, as a Bridge does, and takes the edge's time from
// when the last of them comes to it. A step that moves two micro-batches ends
// when both have arrived; they do not wait for each other.
#ifndef MIMO_MIMO_PARALLEL_SCHEDULE_SIMULATOR_H_
#define MIMO_MIMO_PARALLEL_SCHEDULE_SIMULATOR_H_

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "mimo/parallel/pipeline_schedule.h"

namespace mimo {

// Of one micro-batch in a stage, in milliseconds.
struct StageTime {
  double forward = 0, backward = 0;
};
// By module and stage of it.
using StageTimes = std::map<std::pair<std::string, int>, StageTime>;

// Of one micro-batch, all in one unit.
struct ScheduleTimes {
  std::vector<double> forward, backward;  // [stages]
  std::vector<double> transfer;           // [edges], either way
};

struct TimedStep {
  PipelineStep step;
  double begin, end;  // a transfer begins when the rank comes to it
};

struct SimulatedSchedule {
  std::vector<std::vector<TimedStep>> ranks;
  double total = 0;
  double bubble_share = 0;  // of total * ranks, neither forward nor backward
};

// programs[r] is that of rank r; it has the stages that it computes. Error: a
// deadlock, with a line for each rank that does not get to its end: at which
// step, and for whom it waits.
absl::StatusOr<SimulatedSchedule> SimulateSchedule(
    const PipelineSchedule& schedule,
    absl::Span<const std::vector<PipelineStep>> programs,
    const ScheduleTimes& times);

}  // namespace mimo

#endif  // MIMO_MIMO_PARALLEL_SCHEDULE_SIMULATOR_H_
