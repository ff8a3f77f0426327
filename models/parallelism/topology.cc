#include "models/parallelism/topology.h"

#include <algorithm>
#include <map>
#include <set>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

using Receivers = std::map<std::string, std::vector<std::string>>;

// Walks on from the last of `path`; what is `done` leads to no cycle.
absl::Status FindCycle(const Receivers& receivers,
                       std::vector<std::string>& path,
                       std::set<std::string>& done) {
  const std::string module = path.back();
  const auto first = std::find(path.begin(), path.end() - 1, module);
  if (first != path.end() - 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("topology: cycle %s, wanted none",
                        absl::StrJoin(first, path.end(), " -> ")));
  }
  if (!done.contains(module)) {
    for (const std::string& receiver : receivers.at(module)) {
      path.push_back(receiver);
      MIMO_RETURN_IF_ERROR(FindCycle(receivers, path, done));
    }
    done.insert(module);
  }
  path.pop_back();
  return absl::OkStatus();
}

}  // namespace

ModuleTopology DefaultTopology(const MimoParallelismConfig& config) {
  ModuleTopology topology;
  for (const std::string& name : config.ModuleNames()) {
    topology.emplace_back(name, std::vector<std::string>());
    if (name != config.llm_module_name) {
      topology.back().second.push_back(config.llm_module_name);
    }
  }
  return topology;
}

absl::Status CheckTopology(const MimoParallelismConfig& config,
                           const ModuleTopology& topology) {
  const std::string names = absl::StrJoin(config.ModuleNames(), ", ");
  Receivers receivers;
  for (const auto& [sender, sends_to] : topology) {
    if (!receivers.emplace(sender, sends_to).second) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "topology: module '%s' given twice, wanted once", sender));
    }
    std::set<std::string> seen;
    for (const std::string& receiver : sends_to) {
      if (config.Find(receiver) == nullptr) {
        return absl::InvalidArgumentError(
            absl::StrFormat("topology: '%s' sends to '%s', wanted one of [%s]",
                            sender, receiver, names));
      }
      if (!seen.insert(receiver).second) {
        return absl::InvalidArgumentError(
            absl::StrFormat("topology: '%s' sends to '%s' twice, wanted once",
                            sender, receiver));
      }
    }
    if (config.Find(sender) == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrFormat("topology: '%s', wanted one of [%s]", sender, names));
    }
  }
  std::set<std::string> done;
  for (const std::string& name : config.ModuleNames()) {
    if (!receivers.contains(name)) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "topology: no module '%s', wanted all of [%s]", name, names));
    }
  }
  for (const auto& [sender, sends_to] : receivers) {
    std::vector<std::string> path = {sender};
    MIMO_RETURN_IF_ERROR(FindCycle(receivers, path, done));
  }
  return absl::OkStatus();
}

}  // namespace mimo
