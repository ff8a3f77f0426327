// ModelLinks: in which order a rank runs the stages of a model that it has, and
// what joins these to the stages before and after them.
#ifndef MIMO_MODELS_MIMO_MODEL_MODEL_LINKS_H_
#define MIMO_MODELS_MIMO_MODEL_MODEL_LINKS_H_

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/base/communicator.h"
#include "comm/bridge/bridge.h"
#include "mimo/parallel/pipeline_schedule.h"
#include "models/infra/module_comm.h"
#include "models/mimo_model/mimo_model.h"
#include "models/parallelism/mimo_parallelism.h"
#include "models/parallelism/module_schedule.h"

namespace mimo {

// Of an edge of the schedule. Without either: both of its stages are here, and
// what one gives is what the other takes.
struct StageLink {
  Communicator* pipeline = nullptr;     // stages of one module: its pp group
  std::unique_ptr<Communicator> group;  // else the bridge's ranks,
  std::unique_ptr<Bridge> bridge;       // null on a rank that is none of them,
  std::optional<BridgeConfig> config;   // what the infra says of it
};

// A schedule, and this rank's part of it.
struct RankProgram {
  PipelineSchedule schedule;
  std::vector<PipelineStep> steps;
};

// Whether the model runs with this topology and these outputs: each modality
// feeds the language model rows and nothing else does anything.
// InvalidArgument: it does not.
absl::Status CheckRuns(const MimoParallelismConfig& parallelism);

class ModelLinks {
 public:
  // Of a model that is whole on this rank. `run_ahead`: micro-batches by which
  // what is frozen runs ahead of what it feeds, at most.
  explicit ModelLinks(const MimoModel& model, int run_ahead = 0);
  // Of this rank's part of a model; called by all ranks of `world`, which the
  // links do not outlive. Other errors than the communicators': CheckRuns'; a
  // modality's rows that are not as wide as the language model's.
  static absl::StatusOr<ModelLinks> Connect(const MimoModel& model,
                                            Communicator& world,
                                            Allocator& allocator,
                                            int run_ahead = 0);

  // Of `micro_batches`, or of one, to be run for each in turn, where nobody has
  // a pipeline (models/parallelism/module_schedule.h).
  const RankProgram& Program(int micro_batches, bool forward_only);
  const StageLink& link(int edge) const { return links_[edge]; }  // of any
  int run_ahead() const { return run_ahead_; }
  // An iteration at best, by the schedule; `times` of its stages.
  IdealTime Ideal(int micro_batches, const StageTimes& times);

 private:
  ModelLinks() = default;

  // Who is where: of one rank, homogeneous modules.
  MimoParallelismConfig parallelism_;
  std::map<std::string, int> frozen_stages_;  // the first of each module
  int rank_ = 0, run_ahead_ = 0;
  std::vector<StageLink> links_;  // by edge
  std::map<std::pair<int, bool>, RankProgram> programs_;
};

}  // namespace mimo

#endif  // MIMO_MODELS_MIMO_MODEL_MODEL_LINKS_H_
