// RunTrace: what every rank did in some iterations, as their profilers have it,
// on one clock.
//
//   forward, backward              a stage's, of a micro-batch
//   transfer                       between two stages, of one module or of two
//   reduce gradients, gather parameters, sum    over the ranks of a group
//   all-gather, reduce-scatter, all-reduce, ring    likewise, of tp and cp
//                                  ranks inside of a forward or backward
//   idle                           in these, until the last of the ranks comes
//   data, update, iteration N      as in a profile
//
// Idle time is worked out here: whoever enters a meeting early waits until the
// last of its ranks does, and what is left of it is communication.
//
// The bubble is what the schedule leaves: of the time from an iteration's first
// forward to its last backward, on all ranks that run any, the share in which
// they run neither. What a rank waits for inside of one counts as its work.
//
// Processes of one machine have one clock; those of others are laid over it by
// the moment when the profilers began, which all do after a barrier.
#ifndef MIMO_MIMO_TRAIN_RUN_TRACE_H_
#define MIMO_MIMO_TRAIN_RUN_TRACE_H_

#include <string>
#include <vector>

#include "mimo/autograd/profiler.h"
#include "mimo/parallel/schedule_simulator.h"

namespace mimo {

struct RunTrace {
  // Trace Event Format, a process a rank, for ui.perfetto.dev.
  std::string file;
  double bubble_share = 0;
  StageTimes times;  // means
};

// A rank's part of it, as text.
std::string TracePart(const Profiler& profiler);
// Of all ranks' parts, in order.
RunTrace MergeTraces(const std::vector<std::string>& parts);

}  // namespace mimo

#endif  // MIMO_MIMO_TRAIN_RUN_TRACE_H_
