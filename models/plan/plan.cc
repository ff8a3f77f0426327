#include "models/plan/plan.h"

#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "kernels/base/status_macros.h"
#include "models/parallelism/module_grid.h"
#include "models/parallelism/module_schedule.h"

namespace mimo {
namespace {

// [PP]: micro-batches of which a stage of `module` keeps activations at once.
std::vector<int64_t> InFlight(const PipelineSchedule& schedule,
                              const ModulePlan& module) {
  std::vector<int64_t> in_flight;
  const int stages = module.parallelism.pipeline_model_parallel_size;
  for (int stage = 0; stage < stages; ++stage) {
    in_flight.push_back(
        schedule.InFlight(schedule.StageOf(module.name, stage)));
  }
  return in_flight;
}

}  // namespace

ParameterCount& ParameterCount::operator+=(const ParameterCount& other) {
  parameters += other.parameters;
  trainable += other.trainable;
  return *this;
}

ParameterCount ModulePlan::Total() const {
  ParameterCount total;
  for (const auto& [part, count] : parts) total += count;
  return total;
}

std::vector<RankMemory> MimoPlan::MemoryOfRanks() const {
  std::vector<RankMemory> of_ranks(world_size);
  for (const ModulePlan& module : modules) {
    // Stages lie one behind another: pp is the slowest dimension.
    const int of_stage = module.ranks.size() / module.stages.size();
    for (int i = 0; i < module.ranks.size(); ++i) {
      of_ranks[module.ranks.rank_offset() + i] += module.stages[i / of_stage];
    }
  }
  return of_ranks;
}

absl::StatusOr<MimoPlan> MakePlan(const MimoModelConfig& config,
                                  const ModuleRegistry& registry,
                                  const MimoParallelismConfig& parallelism,
                                  int world_size, const TrainConfig& train) {
  MimoPlan plan{.world_size = world_size, .parallelism = parallelism};
  MIMO_ASSIGN_OR_RETURN(plan.micro_batches,
                        parallelism.MicroBatches(train.global_batch_size,
                                                 train.micro_batch_size));
  plan.topology = DefaultTopology(parallelism);
  MIMO_ASSIGN_OR_RETURN(plan.idle_ranks, parallelism.IdleRanks(world_size));
  Allocator allocator;
  MIMO_ASSIGN_OR_RETURN(
      const auto model,
      MimoModel::Build(config, registry,
                       {.allocator = &allocator, .meta = true}));
  std::set<std::string> frozen;
  for (const auto& [name, module] : parallelism.module_parallelisms) {
    const bool language = name == parallelism.llm_module_name;
    MIMO_ASSIGN_OR_RETURN(
        const int64_t samples,
        parallelism.MicroBatchSize(name, train.micro_batch_size));
    MIMO_ASSIGN_OR_RETURN(RankGrid ranks, ModuleGrid(module, world_size));
    ModulePlan& of_module =
        plan.modules.emplace_back(ModulePlan{.name = name,
                                             .parallelism = module,
                                             .ranks = std::move(ranks),
                                             .micro_batch_size = samples});
    const std::string path =
        language ? "language_model" : "modality_submodules." + name;
    for (const Parameter* p : model->Parameters()) {
      const std::string part = PartOf(p->name);
      if (part != path && !absl::StartsWith(part, path + ".")) continue;
      auto& parts = of_module.parts;
      if (parts.empty() || parts.back().first != part) {
        parts.emplace_back(part, ParameterCount());
      }
      parts.back().second +=
          ParameterCount{p->data.numel(), p->frozen ? 0 : p->data.numel()};
    }
    if (of_module.Total().trainable == 0) frozen.insert(name);
  }
  MIMO_ASSIGN_OR_RETURN(
      plan.schedule,
      MakeModuleSchedule(
          parallelism, plan.topology, frozen,
          {.micro_batches = static_cast<int>(plan.micro_batches),
           .run_ahead = static_cast<int>(train.encoder_run_ahead)}));
  for (ModulePlan& module : plan.modules) {
    const bool language = module.name == parallelism.llm_module_name;
    MIMO_ASSIGN_OR_RETURN(
        module.stages,
        ModuleMemory({.modality = language ? "" : module.name,
                      .parallelism = module.parallelism,
                      .micro_batch_size = module.micro_batch_size,
                      .micro_batches = InFlight(plan.schedule, module),
                      .dtype = train.dtype == "bfloat16" ? DType::kBFloat16
                                                         : DType::kFloat32},
                     *model, registry));
  }
  return plan;
}

}  // namespace mimo
