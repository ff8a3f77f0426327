#include "models/plan/plan.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "kernels/base/status_macros.h"
#include "models/parallelism/module_grid.h"

namespace mimo {
namespace {

// Pipeline stages from `module`'s first to the end of the longest way that its
// output takes.
int64_t StagesFrom(const MimoParallelismConfig& config,
                   const ModuleTopology& topology, const std::string& module) {
  int64_t behind = 0;
  for (const auto& [sender, receivers] : topology) {
    if (sender != module) continue;
    for (const std::string& receiver : receivers) {
      behind = std::max(behind, StagesFrom(config, topology, receiver));
    }
  }
  return config.Find(module)->pipeline_model_parallel_size + behind;
}

// [PP]: micro-batches of which a stage of `module` keeps activations at once.
//   no pipeline   1
//   colocated     the encoders run all micro-batches before the language
//                 model's pipeline starts
//   1F1B          one for each stage from here to the end
std::vector<int64_t> UnderWay(const MimoPlan& plan, const std::string& module) {
  const MimoParallelismConfig& config = plan.parallelism;
  const auto pp = [&](const std::string& name) {
    return config.Find(name)->pipeline_model_parallel_size;
  };
  std::vector<int64_t> under_way(pp(module), 1);
  if (config.deployment_mode != DeploymentMode::kHeterogeneous &&
      pp(config.llm_module_name) == 1) {
    return under_way;
  }
  if (config.deployment_mode == DeploymentMode::kColocated &&
      module != config.llm_module_name) {
    return {plan.micro_batches};
  }
  const int64_t stages = StagesFrom(config, plan.topology, module);
  for (int stage = 0; stage < pp(module); ++stage) {
    under_way[stage] = std::min(plan.micro_batches, stages - stage);
  }
  return under_way;
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
    MIMO_ASSIGN_OR_RETURN(
        of_module.stages,
        ModuleMemory({.modality = language ? "" : name,
                      .parallelism = module,
                      .micro_batch_size = samples,
                      .micro_batches = UnderWay(plan, name),
                      .dtype = train.dtype == "bfloat16" ? DType::kBFloat16
                                                         : DType::kFloat32},
                     *model, registry));
  }
  return plan;
}

}  // namespace mimo
