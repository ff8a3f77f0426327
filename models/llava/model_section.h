// The `model:` section of a run's config.
//   type: llava   LlavaConfig, with pretrained: a Hugging Face folder whose
//                 config.json gives the sizes that the section leaves out
//   type: mimo    any modules of a registry (models/spec/module_spec.h)
#ifndef MIMO_MODELS_LLAVA_MODEL_SECTION_H_
#define MIMO_MODELS_LLAVA_MODEL_SECTION_H_

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "mimo/config/config_node.h"
#include "models/llava/config.h"
#include "models/spec/module_spec.h"

namespace mimo {

struct ModelSection {
  MimoModelConfig model;
  std::optional<LlavaConfig> llava;  // of type llava: what `model` came from
  std::string pretrained;            // folder of the first weights, or ""

  // The section that stands for this model without `pretrained`: what a
  // checkpoint keeps.
  ConfigNode ToNode() const;
};

absl::StatusOr<ModelSection> ReadModelSection(const ConfigNode& node,
                                              const ModuleRegistry& registry);

}  // namespace mimo

#endif  // MIMO_MODELS_LLAVA_MODEL_SECTION_H_
