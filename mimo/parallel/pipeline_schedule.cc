#include "mimo/parallel/pipeline_schedule.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/log/log.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

absl::Status Wrong(const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("pipeline: ", what));
}

using Receivers = std::vector<std::vector<int>>;  // [modules]

absl::StatusOr<Receivers> FindReceivers(
    absl::Span<const PipelineModule> modules) {
  absl::flat_hash_map<std::string, int> index;
  for (const PipelineModule& module : modules) {
    if (module.stages < 1) {
      return Wrong(
          absl::StrFormat("module '%s' has %d stages, wanted 1 or more",
                          module.name, module.stages));
    }
    if (!index.emplace(module.name, index.size()).second) {
      return Wrong(
          absl::StrFormat("module '%s' given twice, wanted once", module.name));
    }
  }
  Receivers receivers;
  bool terminal = false;
  for (const PipelineModule& module : modules) {
    std::vector<int>& to = receivers.emplace_back();
    for (const std::string& name : module.receivers) {
      const auto found = index.find(name);
      if (found == index.end()) {
        return Wrong(absl::StrFormat("'%s' sends to '%s', wanted a module",
                                     module.name, name));
      }
      if (std::find(to.begin(), to.end(), found->second) != to.end()) {
        return Wrong(absl::StrFormat("'%s' sends to '%s' twice, wanted once",
                                     module.name, name));
      }
      to.push_back(found->second);
    }
    terminal |= to.empty();
  }
  if (!terminal) {
    return Wrong("every module sends on, wanted at least one terminal");
  }
  return receivers;
}

// Modules, each after all that feed it.
absl::StatusOr<std::vector<int>> TopologicalOrder(
    absl::Span<const PipelineModule> modules, const Receivers& receivers) {
  std::vector<int> senders(receivers.size()), order;
  for (const std::vector<int>& to : receivers) {
    for (int r : to) ++senders[r];
  }
  for (int m = 0; m < senders.size(); ++m) {
    if (senders[m] == 0) order.push_back(m);
  }
  for (int i = 0; i < order.size(); ++i) {
    for (int r : receivers[order[i]]) {
      if (--senders[r] == 0) order.push_back(r);
    }
  }
  if (order.size() < receivers.size()) {
    const auto left = std::find_if(senders.begin(), senders.end(),
                                   [](int count) { return count > 0; });
    return Wrong(absl::StrFormat(
        "topology contains cycles (at or before '%s'), wanted none",
        modules[left - senders.begin()].name));
  }
  return order;
}

}  // namespace

absl::StatusOr<PipelineSchedule> PipelineSchedule::Create(
    std::vector<PipelineModule> modules,
    const PipelineScheduleOptions& options) {
  if (options.micro_batches < 1) {
    return Wrong(absl::StrFormat("micro_batches %d, wanted at least 1",
                                 options.micro_batches));
  }
  MIMO_ASSIGN_OR_RETURN(const Receivers receivers, FindReceivers(modules));
  MIMO_ASSIGN_OR_RETURN(const std::vector<int> order,
                        TopologicalOrder(modules, receivers));

  std::vector<int> begin(modules.size());    // longest path before it
  std::vector<uint8_t> fed(modules.size());  // by a stage with a backward
  PipelineSchedule schedule = {.options = options, .total_stages = 0};
  for (int m : order) {
    const bool backward =
        fed[m] || modules[m].frozen_stages < modules[m].stages;
    const int end = begin[m] + modules[m].stages;
    schedule.total_stages = std::max(schedule.total_stages, end);
    for (int r : receivers[m]) {
      begin[r] = std::max(begin[r], end);
      fed[r] |= backward;
    }
  }
  std::vector<int> first;  // [modules] stages
  for (int m = 0; m < modules.size(); ++m) {
    first.push_back(schedule.stages.size());
    for (int s = 0; s < modules[m].stages; ++s) {
      const bool backward =
          !options.forward_only && (fed[m] || s >= modules[m].frozen_stages);
      schedule.stages.push_back({m, s, begin[m] + s, backward});
    }
  }
  for (int i = 0; i < schedule.stages.size(); ++i) {
    const auto [m, s, current, trains] = schedule.stages[i];
    if (s + 1 < modules[m].stages) {
      schedule.edges.push_back({i, i + 1});
      continue;
    }
    for (int r : receivers[m]) schedule.edges.push_back({i, first[r]});
  }
  schedule.modules = std::move(modules);
  return schedule;
}

int PipelineSchedule::StageOf(absl::string_view module, int stage) const {
  for (int i = 0; i < stages.size(); ++i) {
    if (modules[stages[i].module].name == module && stages[i].stage == stage) {
      return i;
    }
  }
  LOG(FATAL) << "no stage " << stage << " of a module '" << module << "'";
}

int PipelineSchedule::WarmUp(int stage) const {
  return std::min(total_stages - stages[stage].current_stage - 1,
                  options.micro_batches);
}

int PipelineSchedule::InFlight(int stage) const {
  const PipelineStage& at = stages[stage];
  if (!at.backward) return 1;
  if (options.three_phases && !modules[at.module].receivers.empty()) {
    return options.micro_batches;
  }
  return std::min(WarmUp(stage) + 1, options.micro_batches);
}

// The phases: slots before 0, from 0 on, and from 2 (S + M) on.
int64_t PipelineSchedule::ForwardSlot(int stage, int m) const {
  const PipelineStage& at = stages[stage];
  const bool sends = !modules[at.module].receivers.empty();
  const int64_t phase = 2 * (total_stages + options.micro_batches);
  return at.current_stage + 2 * m - (options.three_phases && sends ? phase : 0);
}

int64_t PipelineSchedule::BackwardSlot(int stage, int m) const {
  const PipelineStage& at = stages[stage];
  const bool sends = !modules[at.module].receivers.empty();
  const int64_t phase = 2 * (total_stages + options.micro_batches);
  return 2 * total_stages - at.current_stage - 1 + 2 * m +
         (options.three_phases && sends ? phase : 0);
}

std::vector<PipelineStep> PipelineSchedule::Program(
    absl::Span<const int> held) const {
  // (time, order, place, micro-batch): slot t is time 2 t, the gap before it
  // 2 t - 1; within a slot backwards come first, as they free memory.
  using Key = std::tuple<int64_t, int, int, int>;
  std::vector<std::pair<Key, PipelineStep>> timed;
  const auto add = [&](int64_t time, int m, const PipelineStep& step) {
    const bool last = step.kind == PipelineStep::kForward;
    timed.push_back({Key(time, last, step.at, m), step});
  };
  for (int i : held) {
    for (int m = 0; m < options.micro_batches; ++m) {
      add(2 * ForwardSlot(i, m), m, {PipelineStep::kForward, i, m, -1});
      if (!stages[i].backward) continue;
      add(2 * BackwardSlot(i, m), m, {PipelineStep::kBackward, i, -1, m});
    }
  }
  const auto holds = [&](int stage) {
    return std::find(held.begin(), held.end(), stage) != held.end();
  };
  for (int e = 0; e < edges.size(); ++e) {
    const auto [from, to] = edges[e];
    if (!holds(from) && !holds(to)) continue;
    for (int m = 0; m < options.micro_batches; ++m) {
      // In phases the sender's time, as the receiver's is far away.
      const int64_t forward =
          options.three_phases ? ForwardSlot(from, m) + 1 : ForwardSlot(to, m);
      add(2 * forward - 1, m, {PipelineStep::kTransfer, e, m, -1});
      if (!stages[from].backward) continue;
      const int64_t backward = options.three_phases ? BackwardSlot(from, m)
                                                    : BackwardSlot(to, m) + 1;
      add(2 * backward - 1, m, {PipelineStep::kTransfer, e, -1, m});
    }
  }
  std::sort(timed.begin(), timed.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<PipelineStep> steps;
  for (int i = 0; i < timed.size(); ++i) {
    const auto& [key, step] = timed[i];
    // At one time on one edge, the gradient is of the earlier micro-batch.
    if (step.kind == PipelineStep::kTransfer && step.forward >= 0 &&
        !steps.empty() && steps.back().backward >= 0 &&
        std::get<0>(timed[i - 1].first) == std::get<0>(key) &&
        steps.back().at == step.at) {
      steps.back().forward = step.forward;
    } else {
      steps.push_back(step);
    }
  }
  return steps;
}

std::string PipelineSchedule::Describe(const PipelineStep& step) const {
  const auto name = [&](int stage) {
    return absl::StrCat(modules[stages[stage].module].name, ".",
                        stages[stage].stage);
  };
  std::string text = step.kind == PipelineStep::kTransfer
                         ? absl::StrCat(name(edges[step.at].from), " -> ",
                                        name(edges[step.at].to))
                         : name(step.at);
  if (step.forward >= 0) absl::StrAppend(&text, " forward ", step.forward);
  if (step.backward >= 0) absl::StrAppend(&text, " backward ", step.backward);
  return text;
}

}  // namespace mimo
