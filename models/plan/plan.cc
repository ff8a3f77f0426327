#include "models/plan/plan.h"

#include <map>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/match.h"
#include "kernels/base/status_macros.h"
#include "models/parallelism/module_grid.h"
#include "models/parallelism/module_schedule.h"

namespace mimo {
namespace {

// The first stages of a module that have nothing to train.
int FrozenStages(const ModulePlan& module) {
  return absl::c_find_if(
             module.stages,
             [](const RankMemory& stage) { return stage.gradients > 0; }) -
         module.stages.begin();
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

std::vector<std::pair<std::string, RankGroups>> ModulePlan::Groups() const {
  std::vector<std::pair<std::string, RankGroups>> groups;
  for (const ModuleGroup& group : ModuleGroups())
    groups.emplace_back(group.Name(ranks), group.Ranks(ranks));
  return groups;
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
                                  int world_size, const TrainConfig& train,
                                  const OptimizerConfig& optimizer) {
  MimoPlan plan{.world_size = world_size, .parallelism = parallelism};
  MIMO_ASSIGN_OR_RETURN(plan.micro_batches,
                        parallelism.MicroBatches(train.global_batch_size,
                                                 train.micro_batch_size));
  MIMO_ASSIGN_OR_RETURN(plan.idle_ranks, parallelism.IdleRanks(world_size));
  Allocator allocator;
  MIMO_ASSIGN_OR_RETURN(
      const auto model,
      MimoModel::Build(config, registry,
                       {.allocator = &allocator, .meta = true}));
  DType dtype = DType::kFloat32;
  for (DType other : {DType::kBFloat16, DType::kFloat64})
    if (train.dtype == Name(other)) dtype = other;
  std::map<std::string, int> frozen_stages;
  std::vector<ModuleLoad> loads;
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
    const ModuleLoad& load = loads.emplace_back(
        ModuleLoad{.modality = language ? "" : name,
                   .parallelism = module,
                   .micro_batch_size = samples,
                   .dtype = dtype,
                   .exp_avg_dtype = optimizer.exp_avg_dtype});
    MIMO_ASSIGN_OR_RETURN(of_module.stages,
                          ModuleMemory(load, *model, registry));
    frozen_stages[name] = FrozenStages(of_module);
  }
  MIMO_ASSIGN_OR_RETURN(
      plan.schedule,
      MakeModuleSchedule(
          parallelism, frozen_stages,
          {.micro_batches = static_cast<int>(plan.micro_batches)}));
  const PipelineSchedule& schedule = plan.schedule;
  for (size_t m = 0; m < loads.size(); ++m) {
    ModulePlan& module = plan.modules[m];
    for (size_t i = 0; i < module.stages.size(); ++i) {
      int64_t& activations = module.stages[i].activations;
      activations *= schedule.InFlight(schedule.StageOf(module.name, i));
      activations += train.encoder_run_ahead * AheadMemory(loads[m], *model, i);
    }
  }
  return plan;
}

}  // namespace mimo
