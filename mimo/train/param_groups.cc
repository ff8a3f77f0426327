#include "mimo/train/param_groups.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace mimo {

std::vector<ParamGroup> ParamGroupsOf(
    const DistributedDataParallel& parallel,
    const std::map<std::string, ModuleOptimizerConfig>& rates) {
  std::vector<ParamGroup> groups;
  const auto add = [&](const ModuleOptimizerConfig& own,
                       std::vector<ParameterShard> shards) {
    groups.push_back({.shards = std::move(shards),
                      .lr_mult = own.lr_mult,
                      .wd_mult = own.wd_mult});
  };
  for (size_t m = 0; m < parallel.modules().size(); ++m) {
    const std::string& module = parallel.modules()[m].name;
    std::vector<ParameterShard> rest = parallel.shards(m);
    ModuleOptimizerConfig whole;
    for (const auto& [name, own] : rates) {
      if (name == module) whole = own;
      if (!absl::StartsWith(name, module + ".")) continue;
      const std::string part = absl::StrCat(".", name, ".");
      const auto shards =
          std::ranges::stable_partition(rest, [&](const ParameterShard& shard) {
            return !absl::StrContains(shard.parameter->name, part);
          });
      add(own, {shards.begin(), shards.end()});
      rest.erase(shards.begin(), shards.end());
    }
    add(whole, std::move(rest));
  }
  return groups;
}

}  // namespace mimo
