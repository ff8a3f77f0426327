// MimoModelConfig in YAML: the layout is in module_spec.h.
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "models/spec/module_spec.h"

namespace mimo {
namespace {

// What of a MimoModelConfig is plain fields.
struct PlainFields {
  MimoModelConfig& config;
  template <typename V>
  void Fields(V& v) {
    v("special_token_ids", config.special_token_ids);
    v("freeze_language_model", config.freeze_language_model);
    v("freeze_modality_encoders", config.freeze_modality_encoders);
    v("freeze_modality_projections", config.freeze_modality_projections);
    v("quantization", config.quantization);
  }
};

absl::StatusOr<ModuleSpec> ReadModule(const ConfigNode& node,
                                      const ModuleRegistry& registry) {
  std::string type;
  if (const ConfigNode* found = node.Find("module")) {
    type = found->text;
  } else {
    return node.Error("no module, wanted the name of one");
  }
  auto spec = registry.Default(type);
  if (!spec.ok()) return node.Error(spec.status().message());
  MIMO_RETURN_IF_ERROR(spec->config.Read(node, {"module"}));
  return spec;
}

absl::StatusOr<ModalitySpec> ReadModality(const ConfigNode& node,
                                          const ModuleRegistry& registry) {
  MIMO_RETURN_IF_ERROR(CheckKeys(
      node,
      {"encoders", "decoders", "input_projections", "output_projections"}));
  ModalitySpec spec;
  for (const auto& [key, named] :
       {std::pair("encoders", &spec.encoders), {"decoders", &spec.decoders}}) {
    for (const ConfigNode& child : node[key].children) {
      MIMO_ASSIGN_OR_RETURN(ModuleSpec module, ReadModule(child, registry));
      named->emplace_back(child.key, std::move(module));
    }
  }
  for (const auto& [key, list] :
       {std::pair("input_projections", &spec.input_projections),
        {"output_projections", &spec.output_projections}}) {
    for (const ConfigNode& child : node[key].children) {
      MIMO_ASSIGN_OR_RETURN(ModuleSpec module, ReadModule(child, registry));
      list->push_back(std::move(module));
    }
  }
  return spec;
}

ConfigNode MapNode(std::string key) {
  ConfigNode node;
  node.kind = ConfigNode::Kind::kMap;
  node.key = std::move(key);
  return node;
}

ConfigNode ModuleNode(const ModuleSpec& spec, std::string key) {
  ConfigNode node = spec.config.ToNode();
  ConfigNode type = ToNode(spec.type);
  type.key = "module";
  node.children.insert(node.children.begin(), std::move(type));
  node.key = std::move(key);
  return node;
}

ConfigNode NamedNode(const ModalitySpec::Named& specs, std::string key) {
  ConfigNode node = MapNode(std::move(key));
  for (const auto& [name, spec] : specs)
    node.children.push_back(ModuleNode(spec, name));
  return node;
}

ConfigNode ListNode(const std::vector<ModuleSpec>& specs, std::string key) {
  ConfigNode node = MapNode(std::move(key));
  node.kind = ConfigNode::Kind::kList;
  for (const ModuleSpec& spec : specs)
    node.children.push_back(ModuleNode(spec, ""));
  return node;
}

}  // namespace

absl::StatusOr<MimoModelConfig> ReadModelConfig(
    const ConfigNode& node, const ModuleRegistry& registry) {
  MimoModelConfig config;
  PlainFields plain{config};
  MIMO_RETURN_IF_ERROR(
      FromYaml(node, plain, {"type", "language", "modalities"}));
  MIMO_ASSIGN_OR_RETURN(config.language_model_spec,
                        ReadModule(node["language"], registry));
  for (const ConfigNode& child : node["modalities"].children) {
    MIMO_ASSIGN_OR_RETURN(config.modality_submodules_spec[child.key],
                          ReadModality(child, registry));
  }
  return config;
}

ConfigNode ToNode(const MimoModelConfig& config) {
  MimoModelConfig copy = config;
  PlainFields plain{copy};
  ConfigNode node = config_internal::Write(plain);
  ConfigNode modalities = MapNode("modalities");
  for (const auto& [name, spec] : config.modality_submodules_spec) {
    ConfigNode modality = MapNode(name);
    modality.children = {
        NamedNode(spec.encoders, "encoders"),
        NamedNode(spec.decoders, "decoders"),
        ListNode(spec.input_projections, "input_projections"),
        ListNode(spec.output_projections, "output_projections")};
    modalities.children.push_back(std::move(modality));
  }
  node.children.push_back(ModuleNode(config.language_model_spec, "language"));
  node.children.push_back(std::move(modalities));
  return node;
}

}  // namespace mimo
