// mimo plan: what a config would take of how many ranks, without running it.
#include "models/plan/plan.h"

#include <cstdint>
#include <iostream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "cli/args.h"
#include "cli/commands.h"
#include "cli/config.h"
#include "kernels/base/status_macros.h"
#include "mimo/train/train_config.h"
#include "models/llava/model_section.h"
#include "models/parallelism/module_schedule.h"

namespace mimo {
namespace {

using Json = nlohmann::ordered_json;

Json ToJson(const ParameterCount& count) {
  return {{"parameters", count.parameters}, {"trainable", count.trainable}};
}

Json ToJson(const RankMemory& memory) {
  return {{"weights", memory.weights},
          {"gradients", memory.gradients},
          {"optimizer", memory.optimizer},
          {"activations", memory.activations},
          {"total", memory.Total()}};
}

Json ToJson(const std::vector<RankMemory>& memories) {
  Json list = Json::array();
  for (const RankMemory& memory : memories) list.push_back(ToJson(memory));
  return list;
}

struct SizesToJson {
  Json& json;
  template <typename T>
  void operator()(absl::string_view name, const T& size) {
    if constexpr (std::is_same_v<T, std::optional<int>>) {
      json[std::string(name)] = *size;  // DP, set by now
    } else {
      json[std::string(name)] = size;
    }
  }
};

Json ToJson(const ModulePlan& module) {
  Json json;
  ModuleParallelismConfig sizes = module.parallelism;
  SizesToJson visitor{json};
  sizes.Fields(visitor);
  json["expert_data_parallel_size"] = *sizes.ExpertDataParallelSize();
  json["total_ranks"] = module.ranks.size();
  json["micro_batch_size"] = module.micro_batch_size;
  json.update(ToJson(module.Total()));
  for (const auto& [part, count] : module.parts) {
    json["parts"][part] = ToJson(count);
  }
  return json;
}

Json GroupsToJson(const ModulePlan& module) {
  Json json;
  for (const auto& [name, groups] : module.Groups()) {
    Json lists = Json::array();
    for (int g = 0; g < groups.size(); ++g) {
      lists.push_back(std::vector<int>(groups[g].begin(), groups[g].end()));
    }
    json[name] = std::move(lists);
  }
  return json;
}

// Of "images=3:6,language=5:10"; 1 and 2 of all modules if that is "".
absl::StatusOr<std::map<std::string, StageTime>> ReadTimes(
    const std::string& text, const MimoPlan& plan) {
  std::map<std::string, StageTime> times;
  std::vector<std::string> names;
  for (const ModulePlan& module : plan.modules) names.push_back(module.name);
  if (text.empty()) {
    for (const std::string& name : names) times[name] = {1, 2};
    return times;
  }
  const auto wrong = [&] {
    return absl::InvalidArgumentError(
        absl::StrCat("plan: --times: '", text,
                     "', wanted MODULE=FORWARD:BACKWARD, in ms, "
                     "of [",
                     absl::StrJoin(names, ", "), "]"));
  };
  for (const absl::string_view one : absl::StrSplit(text, ',')) {
    const std::vector<std::string> words =
        absl::StrSplit(one, absl::ByAnyChar("=:"));
    StageTime time;
    if (words.size() != 3 || !absl::SimpleAtod(words[1], &time.forward) ||
        !absl::SimpleAtod(words[2], &time.backward) || !(time.forward >= 0) ||
        !(time.backward >= 0) || !times.emplace(words[0], time).second) {
      return wrong();
    }
  }
  for (const std::string& name : names) {
    if (!times.contains(name)) return wrong();
  }
  if (times.size() > names.size()) return wrong();
  return times;
}

std::string ScheduleLine(const MimoPlan& plan, const IdealTime& ideal,
                         bool timed) {
  const PipelineSchedule& schedule = plan.schedule;
  const std::string kind =
      !schedule.options.three_phases
          ? absl::StrCat("1F1B over ", schedule.total_stages, " stages")
      : schedule.options.micro_batches < plan.micro_batches
          ? "each micro-batch in turn"
          : "the encoders' forwards, 1F1B, the encoders' backwards";
  return absl::StrFormat(
      "schedule: %s; ranks wait %.1f %% of %s\n", kind,
      100 * ideal.bubble_share,
      timed ? absl::StrFormat("the %.1f ms that an iteration takes at best",
                              ideal.milliseconds)
            : "their time at best, if all stages take alike");
}

Json ToJson(const MimoPlan& plan, const TrainConfig& train,
            const IdealTime& ideal, bool timed) {
  Json json = {
      {"world_size", plan.world_size},
      {"deployment_mode", ToNode(plan.parallelism.deployment_mode).text},
      {"micro_batch_size", train.micro_batch_size},
      {"global_batch_size", train.global_batch_size},
      {"micro_batches", plan.micro_batches}};
  ParameterCount total;
  for (const ModulePlan& module : plan.modules) {
    json["modules"][module.name] = ToJson(module);
    total += module.Total();
  }
  json["total"] = ToJson(total);
  json["idle_ranks"] = Json::array();
  for (const RankSpan& span : plan.idle_ranks) {
    for (int64_t r = span.begin; r < span.end; ++r) {
      json["idle_ranks"].push_back(r);
    }
  }
  for (const auto& [sender, receivers] : plan.parallelism.Topology()) {
    json["topology"][sender] = receivers;
  }
  json["warnings"] = plan.parallelism.Warnings();
  json["schedule"] = {{"total_stages", plan.schedule.total_stages},
                      {"ideal_bubble_share", ideal.bubble_share}};
  if (timed) json["schedule"]["ideal_milliseconds"] = ideal.milliseconds;
  for (const ModulePlan& module : plan.modules) {
    json["memory"]["modules"][module.name]["stages"] = ToJson(module.stages);
  }
  json["memory"]["ranks"] = ToJson(plan.MemoryOfRanks());
  for (const ModulePlan& module : plan.modules) {
    json["groups"][module.name] = GroupsToJson(module);
  }
  return json;
}

std::string Ranks(int64_t begin, int64_t count) {
  return count == 1 ? absl::StrCat("rank ", begin)
                    : absl::StrCat("ranks ", begin, "-", begin + count - 1);
}

std::string MemoryRow(const std::string& name, const RankMemory& memory) {
  constexpr double kMiB = 1 << 20;
  return absl::StrFormat("%-40s %12.1f %12.1f %12.1f %12.1f %12.1f\n", name,
                         memory.weights / kMiB, memory.gradients / kMiB,
                         memory.optimizer / kMiB, memory.activations / kMiB,
                         memory.Total() / kMiB);
}

std::string Table(const MimoPlan& plan, const TrainConfig& train,
                  const IdealTime& ideal, bool timed) {
  std::string out = absl::StrFormat(
      "%d rank%s, %s; global batch %d = %d micro-batches of %d for each "
      "replica of the language model\n\n",
      plan.world_size, plan.world_size == 1 ? "" : "s",
      ToNode(plan.parallelism.deployment_mode).text, train.global_batch_size,
      plan.micro_batches, train.micro_batch_size);
  absl::StrAppendFormat(&out, "%-16s %-14s %5s %5s %5s %5s %5s %5s %12s\n",
                        "module", "ranks", "TP", "CP", "DP", "PP", "EP", "ETP",
                        "micro-batch");
  for (const ModulePlan& module : plan.modules) {
    const ModuleParallelismConfig& m = module.parallelism;
    absl::StrAppendFormat(
        &out, "%-16s %-14s %5s %5d %5d %5d %5d %5d %12d\n", module.name,
        Ranks(m.rank_offset, module.ranks.size()),
        absl::StrCat(m.tensor_model_parallel_size,
                     m.sequence_parallel ? "+SP" : ""),
        m.context_parallel_size, *m.data_parallel_size,
        m.pipeline_model_parallel_size, m.expert_model_parallel_size,
        m.expert_tensor_parallel_size, module.micro_batch_size);
  }
  for (const RankSpan& idle : plan.idle_ranks) {
    absl::StrAppendFormat(&out, "%-16s %s\n", "(idle)",
                          Ranks(idle.begin, idle.end - idle.begin));
  }
  for (const auto& [sender, receivers] : plan.parallelism.Topology()) {
    if (receivers.empty()) continue;
    absl::StrAppend(&out, sender, " -> ", absl::StrJoin(receivers, ", "), "\n");
  }
  out += ScheduleLine(plan, ideal, timed);
  for (const std::string& warning : plan.parallelism.Warnings()) {
    absl::StrAppend(&out, "warning: ", warning, "\n");
  }

  for (const ModulePlan& module : plan.modules) {
    absl::StrAppend(&out, "\ngroups of ", module.name, "\n");
    for (const auto& [name, groups] : module.Groups()) {
      absl::StrAppendFormat(&out, "  %-22s %s\n", name, groups.ToString());
    }
  }

  absl::StrAppendFormat(&out, "\n%-55s %14s %14s\n", "parameters", "all",
                        "trainable");
  ParameterCount total;
  const auto row = [&out](const std::string& name, const ParameterCount& c) {
    absl::StrAppendFormat(&out, "%-55s %14d %14d\n", name, c.parameters,
                          c.trainable);
  };
  for (const ModulePlan& module : plan.modules) {
    for (const auto& [part, count] : module.parts) row(part, count);
    total += module.Total();
  }
  row("total", total);

  absl::StrAppendFormat(&out, "\n%-40s %12s %12s %12s %12s %12s\n",
                        "MiB of each rank", "weights", "gradients", "optimizer",
                        "activations", "total");
  for (const ModulePlan& module : plan.modules) {
    const int stages = module.stages.size();
    const int of_stage = module.ranks.size() / stages;
    for (int stage = 0; stage < stages; ++stage) {
      const std::string ranks =
          Ranks(module.ranks.rank_offset() + stage * of_stage, of_stage);
      absl::StrAppend(
          &out, MemoryRow(stages == 1 ? absl::StrCat(module.name, ", ", ranks)
                                      : absl::StrCat(module.name, ", stage ",
                                                     stage, ", ", ranks),
                          module.stages[stage]));
    }
  }
  RankMemory most;
  for (const RankMemory& rank : plan.MemoryOfRanks()) {
    if (rank.Total() > most.Total()) most = rank;
  }
  return absl::StrCat(
      out, MemoryRow("the fullest rank", most),
      "activations of samples of max_sequence_length tokens and one image; "
      "shorter ones, padded or packed, keep less\n");
}

}  // namespace

absl::Status RunPlan(const Words& words, const ModuleRegistry& registry) {
  Args args("plan", "ranks, groups and memory of a config, without running it");
  args.Flag("config", "F.yaml", "the run's configuration");
  args.Flag("world", "N", "ranks (1)");
  args.Flag("times", "M=F:B,..", "ms of a stage of each module, both ways");
  args.Flag("json", "", "one JSON object instead of tables");
  args.Positional("a.b=c", "values that win over the file's");
  MIMO_RETURN_IF_ERROR(args.Parse(words));
  if (args.PrintsHelp()) return absl::OkStatus();
  MIMO_ASSIGN_OR_RETURN(const std::string path, args.Required("config"));
  MIMO_ASSIGN_OR_RETURN(const int64_t world, args.Int("world", 1));
  if (world < 1 || world > std::numeric_limits<int>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat("plan: --world: ", world, ", wanted 1 or more ranks"));
  }
  MIMO_ASSIGN_OR_RETURN(const ConfigNode root,
                        ReadRunConfig(path, args.positional()));
  MIMO_ASSIGN_OR_RETURN(const RunSections run, ReadSections(root));
  MIMO_ASSIGN_OR_RETURN(const ModelSection section,
                        ReadModelSection(root["model"], registry));
  MIMO_ASSIGN_OR_RETURN(
      const MimoParallelismConfig parallelism,
      ReadRunParallelism(root, section.model, run.train, world));
  const auto plan = MakePlan(section.model, registry, parallelism, world,
                             run.train, run.optimizer);
  if (!plan.ok()) {
    return absl::Status(
        plan.status().code(),
        absl::StrCat(path, ": model: ", plan.status().message()));
  }
  const bool timed = args.Has("times");
  MIMO_ASSIGN_OR_RETURN(const auto times,
                        ReadTimes(args.String("times"), *plan));
  const IdealTime ideal =
      IdealIteration(plan->schedule, plan->parallelism,
                     TimesOfStages(plan->schedule, times), plan->micro_batches);
  if (args.Has("json")) {
    std::cout << ToJson(*plan, run.train, ideal, timed).dump() << "\n";
  } else {
    std::cout << Table(*plan, run.train, ideal, timed);
  }
  return absl::OkStatus();
}

}  // namespace mimo
