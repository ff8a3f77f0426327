// MimoPlan: what training a model on some ranks would take, by arithmetic
// alone: no process, no device, no memory for weights.
#ifndef MIMO_MODELS_PLAN_PLAN_H_
#define MIMO_MODELS_PLAN_PLAN_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/grid/rank_grid.h"
#include "mimo/optim/optimizer_config.h"
#include "mimo/parallel/pipeline_schedule.h"
#include "mimo/train/train_config.h"
#include "models/mimo_model/mimo_model.h"
#include "models/parallelism/mimo_parallelism.h"
#include "models/plan/module_memory.h"
#include "models/spec/module_spec.h"

namespace mimo {

struct ParameterCount {
  int64_t parameters = 0, trainable = 0;
  ParameterCount& operator+=(const ParameterCount& other);
};

struct ModulePlan {
  std::string name;
  ModuleParallelismConfig parallelism;
  RankGrid ranks;
  int64_t micro_batch_size;  // samples of a replica
  // Of the whole module, by part (PartOf), in the model's order.
  std::vector<std::pair<std::string, ParameterCount>> parts;
  // [PP]: of each rank of a stage; activations of all micro-batches that are
  // under way at once.
  std::vector<RankMemory> stages;

  ParameterCount Total() const;
  // Those of ModuleGroups(), in their order, by name.
  std::vector<std::pair<std::string, RankGroups>> Groups() const;
};

struct MimoPlan {
  int world_size;
  MimoParallelismConfig parallelism;  // finalized
  int64_t micro_batches;              // of an iteration
  PipelineSchedule schedule;          // models/parallelism/module_schedule.h
  std::vector<ModulePlan> modules;    // in the config's order
  std::vector<RankSpan> idle_ranks;   // of no module

  std::vector<RankMemory> MemoryOfRanks() const;  // [world_size]
};

// `parallelism` is finalized for `world_size` and has the model's modules: the
// language model under its llm_module_name, the modalities under their own.
// Errors, with their key below `parallelism` or `model`: batch sizes that do
// not come out whole, a model that cannot be built.
absl::StatusOr<MimoPlan> MakePlan(const MimoModelConfig& config,
                                  const ModuleRegistry& registry,
                                  const MimoParallelismConfig& parallelism,
                                  int world_size, const TrainConfig& train,
                                  const OptimizerConfig& optimizer = {});

}  // namespace mimo

#endif  // MIMO_MODELS_PLAN_PLAN_H_
