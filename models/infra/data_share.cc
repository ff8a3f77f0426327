#include "models/infra/data_share.h"

#include "absl/algorithm/container.h"

namespace mimo {

DataSlice SliceOfModule(const MimoInfra& infra, const std::string& module) {
  const ProcessGroupCollection& groups = *infra.pg_collections.at(module);
  const bool language = module == infra.parallelism.llm_module_name;
  const Communicator& lanes = language ? *groups.dp : *groups.dp_cp;
  return {lanes.rank(), lanes.size()};
}

DataShare DataShareOf(const MimoInfra& infra, int64_t micro_batch_size,
                      const std::map<std::string, int64_t>& special_token_ids) {
  const MimoParallelismConfig& parallelism = infra.parallelism;
  const std::string& language = parallelism.llm_module_name;
  const ModuleParallelismConfig& of_language = *parallelism.Find(language);
  DataShare share{.samples =
                      micro_batch_size * *of_language.data_parallel_size};
  const auto replicated = [&](const auto& module) {
    return module.second == of_language &&
           of_language.context_parallel_size == 1 &&
           of_language.pipeline_model_parallel_size == 1;
  };
  if (parallelism.deployment_mode == DeploymentMode::kHeterogeneous ||
      !absl::c_all_of(parallelism.module_parallelisms, replicated)) {
    share.special_token_ids = special_token_ids;
  }
  for (const std::string& name : infra.participating_modules) {
    if (name == language) {
      share.text = SliceOfModule(infra, name);
    } else if (infra.pg_collections.at(name)->IsFirstStage()) {
      share.modalities[name] = SliceOfModule(infra, name);
    }
  }
  return share;
}

}  // namespace mimo
