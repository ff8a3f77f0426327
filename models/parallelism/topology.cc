#include "models/parallelism/topology.h"

#include <algorithm>
#include <set>

#include "absl/algorithm/container.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

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

absl::Status CheckTopology(absl::Span<const std::string> modules,
                           const Receivers& receivers) {
  const std::string names = absl::StrJoin(modules, ", ");
  for (const auto& [sender, sends_to] : receivers) {
    if (!absl::c_linear_search(modules, sender)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("topology: '%s', wanted one of [%s]", sender, names));
    }
    std::set<std::string> seen;
    for (const std::string& receiver : sends_to) {
      if (!absl::c_linear_search(modules, receiver)) {
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
  }
  for (const std::string& name : modules) {
    if (!receivers.contains(name)) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "topology: no module '%s', wanted all of [%s]", name, names));
    }
  }
  std::set<std::string> done;
  for (const auto& [sender, sends_to] : receivers) {
    std::vector<std::string> path = {sender};
    MIMO_RETURN_IF_ERROR(FindCycle(receivers, path, done));
  }
  return absl::OkStatus();
}

}  // namespace mimo
