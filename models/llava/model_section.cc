#include "models/llava/model_section.h"

#include <utility>

#include "kernels/base/status_macros.h"
#include "models/hf/llava_config.h"
#include "models/llava/llava.h"

namespace mimo {

ConfigNode ModelSection::ToNode() const {
  ConfigNode node = llava ? mimo::ToNode(*llava) : mimo::ToNode(model);
  ConfigNode type = mimo::ToNode(std::string(llava ? "llava" : "mimo"));
  type.key = "type";
  node.children.insert(node.children.begin(), std::move(type));
  node.key = "model";
  return node;
}

absl::StatusOr<ModelSection> ReadModelSection(const ConfigNode& node,
                                              const ModuleRegistry& registry) {
  ModelSection section;
  const ConfigNode* type = node.Find("type");
  if (type == nullptr) {
    return node.Error("no type, wanted llava or mimo");
  }
  if (type->text == "mimo") {
    MIMO_ASSIGN_OR_RETURN(section.model, ReadModelConfig(node, registry));
    return section;
  }
  if (type->text != "llava") {
    return type->Error(type->Describe() + ", wanted llava or mimo");
  }
  LlavaConfig config;
  if (const ConfigNode* pretrained = node.Find("pretrained");
      pretrained != nullptr && !pretrained->IsNull()) {
    section.pretrained = pretrained->text;
    MIMO_ASSIGN_OR_RETURN(config, ReadHfLlavaConfig(section.pretrained));
  }
  MIMO_RETURN_IF_ERROR(FromYaml(node, config, {"type", "pretrained"}));
  section.model = LlavaModelConfig(config);
  section.llava = std::move(config);
  return section;
}

}  // namespace mimo
