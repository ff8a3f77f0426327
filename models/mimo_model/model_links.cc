#include "models/mimo_model/model_links.h"

#include <algorithm>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/types/span.h"
#include "comm/bridge/grid_bridge.h"
#include "kernels/base/status_macros.h"
#include "mimo/parallel/sum_over_ranks.h"
#include "models/mimo_model/alignment.h"

namespace mimo {
namespace {

// How many of each module's first stages no rank of `world` has anything to
// train of.
absl::StatusOr<std::map<std::string, int>> FrozenStages(
    const MimoModel& model, const MimoParallelismConfig& parallelism,
    Communicator* world, Allocator& allocator) {
  std::vector<double> trained;  // ranks, by module, then stage
  for (const auto& [name, sizes] : parallelism.module_parallelisms) {
    const bool trains =
        model.role().modules.contains(name) && model.module(name).Trainable();
    for (int stage = 0; stage < sizes.pipeline_model_parallel_size; ++stage) {
      const bool here = model.placement().GroupsOf(name).pp_rank() == stage;
      trained.push_back(trains && here ? 1 : 0);
    }
  }
  MIMO_RETURN_IF_ERROR(SumOverRanks(world, allocator, absl::MakeSpan(trained)));
  std::map<std::string, int> frozen_stages;
  auto at = trained.begin();
  for (const auto& [name, sizes] : parallelism.module_parallelisms) {
    const auto end = at + sizes.pipeline_model_parallel_size;
    frozen_stages[name] =
        std::find_if(at, end, [](double n) { return n > 0; }) - at;
    at = end;
  }
  return frozen_stages;
}

// Whether modalities' rows are as wide as the language model's, whose ranks do
// not see each other's.
absl::Status CheckWidths(const MimoModel& model,
                         const MimoParallelismConfig& parallelism,
                         Communicator& world, Allocator& allocator) {
  const std::string& language = parallelism.llm_module_name;
  const std::vector<std::string> names = parallelism.ModuleNames();
  std::vector<double> sums;  // by module: widths, and ranks that know it
  for (const std::string& name : names) {
    double width = 0;
    if (name == language && model.role().HasLanguageModule()) {
      width = model.language_model().hidden_size();
    } else if (name != language && model.role().IsLastStage(name)) {
      width = model.modality(name).output_size();
    }
    sums.push_back(width);
    sums.push_back(width > 0 ? 1 : 0);
  }
  MIMO_RETURN_IF_ERROR(SumOverRanks(&world, allocator, absl::MakeSpan(sums)));
  std::map<std::string, int64_t> widths;
  for (size_t i = 0; i < names.size(); ++i)
    widths[names[i]] = sums[2 * i] / sums[2 * i + 1];
  for (const std::string& name : names) {
    MIMO_RETURN_IF_ERROR(CheckWidth(name, widths[name], widths[language]));
  }
  return absl::OkStatus();
}

absl::StatusOr<StageLink> LinkModules(const BridgeConfig& config,
                                      Communicator& world) {
  MIMO_ASSIGN_OR_RETURN(const BridgeSide source,
                        SourceSide(config.source_grid->ranks()));
  MIMO_ASSIGN_OR_RETURN(const BridgeSide destination,
                        DestinationSide(config.destination_grid->ranks()));
  StageLink link;
  link.config = config;
  if (source == destination && source.cp == 1) return link;
  MIMO_ASSIGN_OR_RETURN(
      link.group,
      world.Split(absl::StrCat(config.source, "->", config.destination),
                  {BridgeRanks(source, destination)}));
  if (link.group == nullptr) return link;
  MIMO_ASSIGN_OR_RETURN(
      const BridgeGroups groups,
      GridBridgeGroups(*config.source_grid, *config.destination_grid,
                       link.group.get()));
  MIMO_ASSIGN_OR_RETURN(
      link.bridge,
      Bridge::Create(source, destination,
                     DefaultBridgeRouting(source, destination), groups));
  return link;
}

}  // namespace

absl::Status CheckRuns(const MimoParallelismConfig& parallelism) {
  const std::string& language = parallelism.llm_module_name;
  for (const auto& [name, receivers] : parallelism.Topology()) {
    if (name == language ? receivers.empty()
                         : receivers == std::vector{language})
      continue;
    return absl::InvalidArgumentError(absl::StrFormat(
        "topology: '%s' sends to [%s], wanted [%s]: no module but the language "
        "model takes what another gives",
        name, absl::StrJoin(receivers, ", "),
        name == language ? "" : language));
  }
  for (const auto& [name, ndim] : parallelism.OutputNdims()) {
    if (name == language || ndim == 2) continue;
    return absl::InvalidArgumentError(absl::StrFormat(
        "module_output_ndim.%s: %d, wanted 2: modalities give rows [tokens, H]",
        name, ndim));
  }
  return absl::OkStatus();
}

ModelLinks::ModelLinks(const MimoModel& model, int run_ahead)
    : run_ahead_(run_ahead) {
  for (const auto& [name, stage] : model.role().modules) {
    CHECK(stage.is_first_stage && stage.is_last_stage)
        << name << " has other ranks: Connect";
    parallelism_.module_parallelisms.emplace_back(name,
                                                  ModuleParallelismConfig());
  }
  parallelism_.deployment_mode = DeploymentMode::kHomogeneous;
  parallelism_.llm_module_name = model.role().language_module_name;
  CHECK_OK(parallelism_.Finalize(1));
  Allocator none;
  frozen_stages_ = *FrozenStages(model, parallelism_, nullptr, none);
  links_.resize(Program(1, false).schedule.edges.size());
}

absl::StatusOr<ModelLinks> ModelLinks::Connect(const MimoModel& model,
                                               Communicator& world,
                                               Allocator& allocator,
                                               int run_ahead) {
  CHECK(model.placement().infra != nullptr) << "a model without an infra";
  const MimoInfra& infra = *model.placement().infra;
  MIMO_RETURN_IF_ERROR(CheckRuns(infra.parallelism));
  ModelLinks self;
  self.parallelism_ = infra.parallelism;
  MIMO_RETURN_IF_ERROR(CheckWidths(model, infra.parallelism, world, allocator));
  self.rank_ = world.rank();
  self.run_ahead_ = run_ahead;
  MIMO_ASSIGN_OR_RETURN(
      self.frozen_stages_,
      FrozenStages(model, infra.parallelism, &world, allocator));
  const PipelineSchedule& schedule = self.Program(1, false).schedule;
  const std::vector<BridgeConfig> bridges = infra.Bridges();
  for (const auto [from, to] : schedule.edges) {
    StageLink& link = self.links_.emplace_back();
    const PipelineStage &upper = schedule.stages[from],
                        &lower = schedule.stages[to];
    const std::string& sender = schedule.modules[upper.module].name;
    if (upper.module == lower.module) {
      const auto& groups = infra.pg_collections.at(sender);
      if (groups != nullptr) link.pipeline = groups->pp;
    } else {
      const auto config = std::find_if(
          bridges.begin(), bridges.end(),
          [&](const BridgeConfig& bridge) { return bridge.source == sender; });
      MIMO_ASSIGN_OR_RETURN(link, LinkModules(*config, world));
    }
  }
  return self;
}

const RankProgram& ModelLinks::Program(int micro_batches, bool forward_only) {
  const auto [at, added] = programs_.try_emplace({micro_batches, forward_only});
  if (added) {
    RankProgram& program = at->second;
    auto schedule = MakeModuleSchedule(
        parallelism_, frozen_stages_,
        {.micro_batches = micro_batches, .forward_only = forward_only});
    CHECK_OK(schedule.status());  // checked with the infra
    program.schedule = *std::move(schedule);
    program.steps = program.schedule.Program(
        StagesOfRank(program.schedule, parallelism_, rank_));
  }
  return at->second;
}

IdealTime ModelLinks::Ideal(int micro_batches, const StageTimes& times) {
  const PipelineSchedule& schedule = Program(micro_batches, false).schedule;
  std::vector<StageTime> of_stages;
  for (const PipelineStage& at : schedule.stages)
    of_stages.push_back(times.at({schedule.modules[at.module].name, at.stage}));
  return IdealIteration(schedule, parallelism_, of_stages, micro_batches);
}

}  // namespace mimo
