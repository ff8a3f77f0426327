// Which ranks modules have, and the rules of MimoParallelismConfig::Finalize.
#include <algorithm>
#include <bit>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/base/status_macros.h"
#include "models/parallelism/mimo_parallelism.h"

namespace mimo {
namespace {

constexpr char kTile[] =
    "rank_offset ranges must tile the distributed world with no gaps";

// "modules.<module>.<message>", as messages begin with their key.
absl::Status ModuleError(absl::string_view module, absl::string_view message) {
  return absl::InvalidArgumentError(
      absl::StrCat("modules.", module, ".", message));
}

// "2, 5-7"
std::string Describe(const std::vector<RankSpan>& spans) {
  return absl::StrJoin(spans, ", ", [](std::string* out, const RankSpan& s) {
    absl::StrAppend(out, s.begin);
    if (s.end - s.begin > 1) absl::StrAppend(out, "-", s.end - 1);
  });
}

struct NamedSpan : RankSpan {
  std::string module;
};
// By their begins.
absl::StatusOr<std::vector<NamedSpan>> SortedSpans(
    const MimoParallelismConfig& config) {
  std::vector<NamedSpan> spans;
  for (const auto& [name, module] : config.module_parallelisms) {
    MIMO_ASSIGN_OR_RETURN(const RankSpan span, config.Span(name));
    spans.push_back({span, name});
  }
  std::stable_sort(
      spans.begin(), spans.end(),
      [](const NamedSpan& a, const NamedSpan& b) { return a.begin < b.begin; });
  return spans;
}

absl::Status CheckNames(const MimoParallelismConfig& config) {
  if (config.Find(config.llm_module_name) == nullptr) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "modules: Language module '%s' must be in module_parallelisms, found "
        "[%s]",
        config.llm_module_name, absl::StrJoin(config.ModuleNames(), ", ")));
  }
  std::set<std::string> names;
  for (const auto& [name, module] : config.module_parallelisms) {
    if (!names.insert(name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("modules.", name, ": given twice, wanted once"));
    }
  }
  return absl::OkStatus();
}

absl::Status FinalizeModules(MimoParallelismConfig& config, int world_size) {
  const bool heterogeneous =
      config.deployment_mode == DeploymentMode::kHeterogeneous;
  for (const auto& [name, module] : config.module_parallelisms) {
    if (heterogeneous && !module.data_parallel_size) {
      return ModuleError(
          name, absl::StrFormat("data_parallel_size: unset, data_parallel_size "
                                "must be set for module '%s' in heterogeneous "
                                "deployment",
                                name));
    }
  }
  for (auto& [name, module] : config.module_parallelisms) {
    const absl::Status valid = module.Finalize(
        heterogeneous ? std::nullopt : std::optional<int>(world_size));
    if (!valid.ok()) return ModuleError(name, valid.message());
  }
  return absl::OkStatus();
}

struct SizeVisitor {
  std::vector<std::pair<absl::string_view, int>> sizes;
  void operator()(absl::string_view key, int n) { sizes.emplace_back(key, n); }
  void operator()(absl::string_view name, std::optional<int> size) {
    sizes.emplace_back(name, size.value_or(0));
  }
  void operator()(absl::string_view, bool) {}  // no size
};

// Every module has the ranks [0, some size), and what else its mode wants.
absl::Status CheckShared(const MimoParallelismConfig& config) {
  const bool homogeneous =
      config.deployment_mode == DeploymentMode::kHomogeneous;
  const absl::string_view mode = homogeneous ? "homogeneous" : "colocated";
  ModuleParallelismConfig language = *config.Find(config.llm_module_name);
  SizeVisitor wanted;
  language.Fields(wanted);
  MIMO_ASSIGN_OR_RETURN(const int64_t ranks, language.TotalRanks());
  for (auto [name, module] : config.module_parallelisms) {
    if (module.rank_offset != 0) {
      return ModuleError(
          name, absl::StrFormat("rank_offset: %d, rank_offset must be 0 in %s "
                                "deployment",
                                module.rank_offset, mode));
    }
    if (homogeneous) {
      SizeVisitor found;
      module.Fields(found);
      for (size_t i = 0; i < found.sizes.size(); ++i) {
        const auto& [key, size] = found.sizes[i];
        if (size == wanted.sizes[i].second) continue;
        return ModuleError(
            name, absl::StrFormat("%s: %d, all sizes must be equal across "
                                  "modules in homogeneous deployment, module "
                                  "'%s' has %d",
                                  key, size, config.llm_module_name,
                                  wanted.sizes[i].second));
      }
      continue;
    }
    const bool may_be_pipelined =
        name == config.llm_module_name && !config.strict_megatron_compat;
    if (module.pipeline_model_parallel_size != 1 && !may_be_pipelined) {
      return ModuleError(
          name, absl::StrFormat("pipeline_model_parallel_size: %d, "
                                "pipeline_model_parallel_size must be 1 in "
                                "colocated deployment%s",
                                module.pipeline_model_parallel_size,
                                config.strict_megatron_compat
                                    ? " with strict_megatron_compat"
                                    : ", but of the language module"));
    }
    MIMO_ASSIGN_OR_RETURN(const int64_t found, module.TotalRanks());
    if (found != ranks) {
      return ModuleError(
          name, absl::StrFormat("data_parallel_size: %d, total_ranks must be "
                                "equal across modules in colocated "
                                "deployment, module '%s' has %d and '%s' %d",
                                *module.data_parallel_size, name, found,
                                config.llm_module_name, ranks));
    }
  }
  return absl::OkStatus();
}

// The spans cover [0, world_size).
absl::Status CheckSpans(const MimoParallelismConfig& config, int world_size) {
  MIMO_ASSIGN_OR_RETURN(const std::vector<NamedSpan> spans,
                        SortedSpans(config));
  if (config.deployment_mode == DeploymentMode::kHeterogeneous &&
      config.strict_megatron_compat) {
    for (size_t i = 1; i < spans.size(); ++i) {
      const NamedSpan &a = spans[i - 1], &b = spans[i];
      if (b.begin < a.end) {
        return ModuleError(
            b.module, absl::StrFormat("rank_offset: %d, rank_offset ranges "
                                      "overlap in heterogeneous deployment: "
                                      "'%s' [%d, %d) and '%s' [%d, %d)",
                                      b.begin, a.module, a.begin, a.end,
                                      b.module, b.begin, b.end));
      }
    }
  }
  MIMO_ASSIGN_OR_RETURN(const std::vector<RankSpan> idle,
                        config.IdleRanks(world_size));
  const bool allow_idle =
      config.allow_idle_ranks && !config.strict_megatron_compat;
  std::string hint;
  if (!idle.empty()) {
    hint = absl::StrCat(
        "; ranks ", Describe(idle), " do not participate in any module",
        config.strict_megatron_compat ? ""
                                      : " (allow_idle_ranks: true lets them)");
  }
  int64_t covered = 0;  // [0, covered)
  absl::string_view last;
  for (const NamedSpan& span : spans) {
    if (span.begin > covered && !allow_idle) {
      return ModuleError(
          span.module,
          absl::StrFormat("rank_offset: %d, %s: module '%s' expected start "
                          "%d, actual start %d%s",
                          span.begin, kTile, span.module, covered, span.begin,
                          hint));
    }
    if (span.end > covered) {
      covered = span.end;
      last = span.module;
    }
  }
  if (covered > world_size || (covered < world_size && !allow_idle)) {
    return ModuleError(
        last,
        absl::StrFormat("rank_offset: MIMO world size mismatch: expected "
                        "%d, got %d; %s: covered ranks [0, %d), "
                        "world_size is %d%s",
                        covered, world_size, kTile, covered, world_size, hint));
  }
  return absl::OkStatus();
}

// Experts are the language module's alone, unless all modules share one grid,
// which Megatron does not know.
absl::Status CheckDenseEncoders(const MimoParallelismConfig& config) {
  if (config.deployment_mode == DeploymentMode::kHomogeneous &&
      !config.strict_megatron_compat) {
    return absl::OkStatus();
  }
  for (const auto& [name, module] : config.module_parallelisms) {
    const int ep = module.expert_model_parallel_size,
              etp = module.expert_tensor_parallel_size;
    if (name != config.llm_module_name && (ep != 1 || etp != 1)) {
      return ModuleError(
          name, absl::StrFormat("%s: %d, Encoder modules must remain dense for "
                                "MegatronMIMO MoE, module '%s' has EP=%d, "
                                "ETP=%d",
                                ep != 1 ? "expert_model_parallel_size"
                                        : "expert_tensor_parallel_size",
                                ep != 1 ? ep : etp, name, ep, etp));
    }
  }
  return absl::OkStatus();
}

// What Megatron's bridges cannot carry, or its recipes refuse.
absl::Status CheckMegatron(const MimoParallelismConfig& config) {
  const auto& modules = config.module_parallelisms;
  for (const auto& [name, module] : modules) {
    const int tp = module.tensor_model_parallel_size;
    if (!std::has_single_bit(static_cast<unsigned>(tp))) {
      return ModuleError(
          name, absl::StrFormat("tensor_model_parallel_size: Module '%s' "
                                "has TP=%d, but TP size must be a power "
                                "of 2",
                                name, tp));
    }
  }
  for (size_t i = 0; i < modules.size(); ++i) {
    for (size_t j = i + 1; j < modules.size(); ++j) {
      const auto& [a, of_a] = modules[i];
      const auto& [b, of_b] = modules[j];
      const int dp_a = *of_a.data_parallel_size,
                dp_b = *of_b.data_parallel_size;
      if (dp_a % dp_b != 0 && dp_b % dp_a != 0) {
        return ModuleError(
            b, absl::StrFormat("data_parallel_size: DP sizes must be divisible "
                               "between modules, '%s' has DP=%d and '%s' DP=%d",
                               a, dp_a, b, dp_b));
      }
    }
  }
  if (config.deployment_mode == DeploymentMode::kHomogeneous) {
    return absl::OkStatus();  // one grid and no bridge
  }
  for (const auto& [name, module] : modules) {
    if (module.context_parallel_size != 1) {
      return ModuleError(
          name, absl::StrFormat("context_parallel_size: %d, CP must be 1 on "
                                "both sides of a bridge with "
                                "strict_megatron_compat",
                                module.context_parallel_size));
    }
    if (name != config.llm_module_name &&
        module.pipeline_model_parallel_size != 1) {
      return ModuleError(
          name, absl::StrFormat("pipeline_model_parallel_size: %d, PP of an "
                                "encoder must be 1 with "
                                "strict_megatron_compat",
                                module.pipeline_model_parallel_size));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<RankSpan>> MimoParallelismConfig::IdleRanks(
    int world_size) const {
  MIMO_ASSIGN_OR_RETURN(std::vector<NamedSpan> spans, SortedSpans(*this));
  spans.push_back({{world_size, world_size}, ""});
  std::vector<RankSpan> idle;
  int64_t covered = 0;
  for (const NamedSpan& span : spans) {
    const int64_t begin = std::min<int64_t>(span.begin, world_size);
    if (begin > covered) idle.push_back({covered, begin});
    covered = std::max(covered, span.end);
  }
  return idle;
}

absl::Status MimoParallelismConfig::Finalize(int world_size) {
  MimoParallelismConfig done = *this;
  MIMO_RETURN_IF_ERROR(CheckNames(done));
  MIMO_RETURN_IF_ERROR(FinalizeModules(done, world_size));
  if (deployment_mode != DeploymentMode::kHeterogeneous) {
    MIMO_RETURN_IF_ERROR(CheckShared(done));
  }
  MIMO_RETURN_IF_ERROR(CheckSpans(done, world_size));
  MIMO_RETURN_IF_ERROR(CheckDenseEncoders(done));
  if (strict_megatron_compat) MIMO_RETURN_IF_ERROR(CheckMegatron(done));
  if (!topology.empty()) {
    MIMO_RETURN_IF_ERROR(CheckTopology(ModuleNames(), topology));
  }
  for (const auto& [name, ndim] : module_output_ndim) {
    if (Find(name) != nullptr && (ndim == 2 || ndim == 3)) continue;
    return absl::InvalidArgumentError(absl::StrFormat(
        "module_output_ndim.%s: %d, wanted 2 or 3 of one of [%s]", name, ndim,
        absl::StrJoin(ModuleNames(), ", ")));
  }
  *this = std::move(done);
  return absl::OkStatus();
}

}  // namespace mimo
