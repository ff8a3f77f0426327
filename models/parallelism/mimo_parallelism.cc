#include "models/parallelism/mimo_parallelism.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

absl::Status NoModule(const MimoParallelismConfig& config,
                      absl::string_view module) {
  return absl::NotFoundError(
      absl::StrFormat("modules: no module '%s', found [%s]", module,
                      absl::StrJoin(config.ModuleNames(), ", ")));
}

}  // namespace

const ModuleParallelismConfig* MimoParallelismConfig::Find(
    absl::string_view module) const {
  for (const auto& [name, config] : module_parallelisms) {
    if (name == module) return &config;
  }
  return nullptr;
}

std::vector<std::string> MimoParallelismConfig::ModuleNames() const {
  std::vector<std::string> names;
  for (const auto& [name, config] : module_parallelisms) names.push_back(name);
  return names;
}

absl::StatusOr<int64_t> MimoParallelismConfig::TotalWorldSize() const {
  int64_t end = 0;
  for (const auto& [name, config] : module_parallelisms) {
    MIMO_ASSIGN_OR_RETURN(const RankSpan span, Span(name));
    end = std::max(end, span.end);
  }
  return end;
}

absl::StatusOr<RankSpan> MimoParallelismConfig::Span(
    absl::string_view module) const {
  const ModuleParallelismConfig* config = Find(module);
  if (config == nullptr) return NoModule(*this, module);
  const auto ranks = config->TotalRanks();
  if (!ranks.ok()) {
    return absl::Status(
        ranks.status().code(),
        absl::StrCat("modules.", module, ".", ranks.status().message()));
  }
  return RankSpan{config->rank_offset, config->rank_offset + *ranks};
}

std::vector<std::string> MimoParallelismConfig::Warnings() const {
  std::vector<std::string> warnings;
  for (const auto& [name, module] : module_parallelisms) {
    const int ep = module.expert_model_parallel_size,
              etp = module.expert_tensor_parallel_size;
    if (ep == 1 && etp == 1) continue;
    warnings.push_back(absl::StrFormat(
        "modules.%s: EP=%d, ETP=%d make groups alone: no module has experts",
        name, ep, etp));
  }
  return warnings;
}

ModuleTopology MimoParallelismConfig::Topology() const {
  ModuleTopology all;
  for (const std::string& name : ModuleNames()) {
    if (!topology.empty()) {
      all.emplace_back(name, topology.at(name));
    } else if (name == llm_module_name) {
      all.emplace_back(name, std::vector<std::string>());
    } else {
      all.emplace_back(name, std::vector{llm_module_name});
    }
  }
  return all;
}

std::map<std::string, int> MimoParallelismConfig::OutputNdims() const {
  std::map<std::string, int> all = module_output_ndim;
  for (const std::string& name : ModuleNames())
    all.emplace(name, name == llm_module_name ? 3 : 2);
  return all;
}

absl::StatusOr<int64_t> MimoParallelismConfig::MicroBatchSize(
    absl::string_view module, int64_t micro_batch_size) const {
  const ModuleParallelismConfig* config = Find(module);
  const ModuleParallelismConfig* language = Find(llm_module_name);
  if (config == nullptr) return NoModule(*this, module);
  if (language == nullptr) return NoModule(*this, llm_module_name);
  MIMO_RETURN_IF_ERROR(config->TotalRanks().status());
  MIMO_RETURN_IF_ERROR(language->TotalRanks().status());
  const int64_t replicas = *config->data_parallel_size;
  int64_t samples = 0;  // of all replicas
  if (micro_batch_size <= 0 ||
      __builtin_mul_overflow(micro_batch_size, *language->data_parallel_size,
                             &samples) ||
      samples % replicas != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "modules.%s.data_parallel_size: %d, must divide micro_batch_size %d * "
        "DP %d of module '%s'",
        module, replicas, micro_batch_size, *language->data_parallel_size,
        llm_module_name));
  }
  return samples / replicas;
}

absl::StatusOr<int64_t> MimoParallelismConfig::MicroBatches(
    int64_t global_batch_size, int64_t micro_batch_size) const {
  for (const auto& [name, m] : module_parallelisms) {
    MIMO_ASSIGN_OR_RETURN(const int64_t samples,
                          MicroBatchSize(name, micro_batch_size));
    if (name == llm_module_name || samples % m.context_parallel_size == 0)
      continue;
    return absl::InvalidArgumentError(absl::StrFormat(
        "modules.%s.context_parallel_size: %d, must divide %d, a replica's "
        "samples",
        name, m.context_parallel_size, samples));
  }
  const ModuleParallelismConfig* language = Find(llm_module_name);
  if (language == nullptr) return NoModule(*this, llm_module_name);
  const int64_t samples = micro_batch_size * *language->data_parallel_size;
  if (global_batch_size <= 0 || global_batch_size % samples != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "modules.%s.data_parallel_size: %d * micro_batch_size %d must divide "
        "global_batch_size %d",
        llm_module_name, *language->data_parallel_size, micro_batch_size,
        global_batch_size));
  }
  return global_batch_size / samples;
}

}  // namespace mimo
