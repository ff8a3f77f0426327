// PipelineSchedule: in which order each rank runs the forward, the backward and
// the transfers of the micro-batches of an iteration, for modules that feed
// each other, each a pipeline of stages of its own. Arithmetic alone.
//
// Stages. A module of PP stages weighs PP. total_stages S is the longest path
// through the modules; current_stage s of a stage is the longest path to it,
// from 0. So each stage lies after all that feed it, and chains are numbered as
// usual.
//
// 1F1B. Work is placed in slots of one clock for all ranks:
//   forward of micro-batch m    slot  s + 2 m
//   backward of m               slot  2 S - s - 1 + 2 m
// A rank does what is its own in the order of the slots, and time is what it
// takes. That is 1F1B: W = min(S - s - 1, M) forwards to warm up, then forward
// and backward in turns, then W backwards, never more than W + 1 micro-batches
// between their forward and backward.
//
// Transfers lie between slots: an activation moves just before the receiver's
// forward, a gradient just after the receiver's backward. Where both move at
// once along an edge it is one step, Bridge::ForwardAndBackward or one Exchange
// with the neighbour in the module's pipeline. Both ends of an edge make the
// same calls, and all ranks make theirs in the order of (time, edge), so no two
// can wait for each other. In Megatron's order, where a sender takes a gradient
// with the W-th activation after it, a receiver three or more stages on and its
// sender may do so for ever.
//
// Three phases, for modules that share ranks with a pipelined receiver: those
// that send run the forwards of all micro-batches, the last modules 1F1B, then
// the senders all backwards. Where nobody has a pipeline, the program of one
// micro-batch, run for each in turn, keeps the least.
//
// A stage is without backward where nothing is trained in it and in what comes
// before it.
//
// Source: Narayanan et al. 2021, arXiv:2104.04473, sec. 2.2; W as in
// Megatron-Core, schedules.py and multimodule_communicator.py.
#ifndef MIMO_MIMO_PARALLEL_PIPELINE_SCHEDULE_H_
#define MIMO_MIMO_PARALLEL_PIPELINE_SCHEDULE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace mimo {

struct PipelineModule {
  std::string name;
  int stages = 1;                      // PP
  std::vector<std::string> receivers;  // modules
  int frozen_stages = 0;               // so many of the first: all frozen
};

struct PipelineScheduleOptions {
  int micro_batches = 1;      // M
  bool forward_only = false;  // evaluation
  bool three_phases = false;
};

struct PipelineStage {
  int module, stage;  // in the module
  int current_stage;  // s
  bool backward;      // false: it has none

  bool operator==(const PipelineStage&) const = default;
};

// From a stage to the next of its module, or from the last of a module to the
// first of a receiver: then a bridge.
struct PipelineEdge {
  int from, to;  // stages

  bool operator==(const PipelineEdge&) const = default;
};

struct PipelineStep {
  enum Kind : uint8_t { kForward, kBackward, kTransfer } kind;
  int at;             // the stage; of a transfer the edge
  int forward = -1;   // the micro-batch that runs or moves forward,
  int backward = -1;  // and backward; -1: none

  bool operator==(const PipelineStep&) const = default;
};

struct PipelineSchedule {
  std::vector<PipelineModule> modules;
  PipelineScheduleOptions options;
  int total_stages;                   // S
  std::vector<PipelineStage> stages;  // by module, then stage
  std::vector<PipelineEdge> edges;    // by the stage they come from

  // Errors: a module without stages, a name twice, a receiver that is no
  // module or stands twice, cycles, no module, fewer than one micro-batch.
  static absl::StatusOr<PipelineSchedule> Create(
      std::vector<PipelineModule> modules,
      const PipelineScheduleOptions& options);

  // Of a stage of the module, which exists.
  int StageOf(absl::string_view module, int stage = 0) const;
  const std::string& ModuleOf(int stage) const {
    return modules[stages[stage].module].name;
  }
  int WarmUp(int stage) const;  // W
  // Micro-batches that the stage has run forward and not yet backward, at most;
  // of one without backward that which it runs.
  int InFlight(int stage) const;
  // What a rank does that has these stages. An edge between two of them is one
  // step, in which it is both sender and receiver.
  std::vector<PipelineStep> Program(absl::Span<const int> held) const;
  // "language.1 forward 3", "images.0 -> language.0 forward 2 backward 0".
  std::string Describe(const PipelineStep& step) const;

 private:
  int64_t ForwardSlot(int stage, int micro_batch) const;
  int64_t BackwardSlot(int stage, int micro_batch) const;
};

}  // namespace mimo

#endif  // MIMO_MIMO_PARALLEL_PIPELINE_SCHEDULE_H_
