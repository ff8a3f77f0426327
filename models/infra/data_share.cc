#include "models/infra/data_share.h"

namespace mimo {

DataSlice SliceOfModule(const MimoInfra& infra, const std::string& module) {
  const ProcessGroupCollection& groups = *infra.pg_collections.at(module);
  const bool language = module == infra.parallelism.llm_module_name;
  const Communicator& lanes = language ? *groups.dp : *groups.dp_cp;
  return {lanes.rank(), lanes.size()};
}

DataShare DataShareOf(const MimoInfra& infra, int64_t micro_batch_size) {
  const MimoParallelismConfig& parallelism = infra.parallelism;
  const std::string& language = parallelism.llm_module_name;
  DataShare share{.samples = micro_batch_size *
                             *parallelism.Find(language)->data_parallel_size};
  if (infra.participating_modules.empty()) return share;  // idle
  for (const std::string& name : infra.participating_modules) {
    if (name == language) {
      share.text = SliceOfModule(infra, name);
    } else if (infra.pg_collections.at(name)->IsFirstStage()) {
      share.modalities[name] = SliceOfModule(infra, name);
    }
  }
  share.counted = parallelism.ModuleNames();
  std::erase(share.counted, language);
  return share;
}

}  // namespace mimo
