// MimoParallelismConfig in YAML.
#include <utility>

#include "kernels/base/status_macros.h"
#include "models/parallelism/mimo_parallelism.h"

namespace mimo {
namespace {

// All fields but the modules, whose order a map's field would lose.
struct PlainFields {
  MimoParallelismConfig& config;
  template <typename V>
  void Fields(V& v) {
    v("deployment_mode", config.deployment_mode);
    v("llm_module_name", config.llm_module_name);
    v("special_token_ids", config.special_token_ids);
    v("topology", config.topology);
    v("module_output_ndim", config.module_output_ndim);
    v("allow_idle_ranks", config.allow_idle_ranks);
    v("strict_megatron_compat", config.strict_megatron_compat);
  }
};

}  // namespace

absl::StatusOr<MimoParallelismConfig> ReadParallelism(
    const ConfigNode& node, std::optional<int> world_size) {
  MimoParallelismConfig config;
  PlainFields plain{config};
  MIMO_RETURN_IF_ERROR(FromYaml(node, plain, {"modules"}));
  const ConfigNode modules = node["modules"];
  if (!modules.IsNull()) {
    MIMO_RETURN_IF_ERROR(
        config_internal::WantKind(modules, ConfigNode::Kind::kMap));
  }
  for (const ConfigNode& child : modules.children) {
    ModuleParallelismConfig module;
    MIMO_RETURN_IF_ERROR(FromYaml(child, module));
    config.module_parallelisms.emplace_back(child.key, module);
  }
  if (world_size) {
    const absl::Status valid = config.Finalize(*world_size);
    if (!valid.ok()) return config_internal::PlaceError(node, valid);
  }
  return config;
}

ConfigNode ToNode(const MimoParallelismConfig& config) {
  MimoParallelismConfig copy = config;
  PlainFields plain{copy};
  ConfigNode node = config_internal::Write(plain);
  ConfigNode modules;
  modules.kind = ConfigNode::Kind::kMap;
  modules.key = "modules";
  config_internal::WriteVisitor write{modules};
  for (const auto& [name, module] : config.module_parallelisms) {
    write(name, module);
  }
  node.children.push_back(std::move(modules));
  return node;
}

}  // namespace mimo
