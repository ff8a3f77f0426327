#include "models/llava/llava.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "models/clip/clip_vit.h"
#include "models/gpt/gpt.h"
#include "models/projector/projector.h"

namespace mimo {

absl::Status LlavaConfig::Validate() const {
  for (const auto& [modality, id] : special_token_ids) {
    if (id < 0 || id >= language.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(
          "special_token_ids.", modality, ": ", id,
          ", wanted less than language.vocab_size ", language.vocab_size));
    }
  }
  if (!special_token_ids.contains(kImages)) {
    return absl::InvalidArgumentError(
        "special_token_ids: no id for images, wanted one");
  }
  return absl::OkStatus();
}

ModuleRegistry BuiltinModules() {
  ModuleRegistry registry;
  registry.Add<GptConfig, GptModel>("gpt");
  registry.Add<ClipVitConfig, ClipVit>("clip_vit");
  registry.Add<ProjectorConfig, MultimodalProjector>("projector");
  return registry;
}

MimoModelConfig LlavaModelConfig(const LlavaConfig& config) {
  return LlavaModelConfig(config, ModuleSpec("clip_vit", config.vision));
}

MimoModelConfig LlavaModelConfig(const LlavaConfig& config,
                                 ModuleSpec vision_encoder) {
  ProjectorConfig projector = config.projector;
  if (projector.input_size == 0) {
    projector.input_size = config.vision.hidden_size;
  }
  if (projector.output_size == 0) {
    projector.output_size = config.language.hidden_size;
  }
  MimoModelConfig model;
  model.language_model_spec = ModuleSpec("gpt", config.language);
  model.modality_submodules_spec[kImages] = {
      .encoders = {{kClipEncoder, std::move(vision_encoder)}},
      .input_projections = {ModuleSpec("projector", projector)}};
  model.special_token_ids = config.special_token_ids;
  model.freeze_language_model = config.freeze_language_model;
  model.freeze_modality_encoders = config.freeze_modality_encoders;
  model.freeze_modality_projections = config.freeze_modality_projections;
  model.quantization = config.quantization;
  return model;
}

}  // namespace mimo
