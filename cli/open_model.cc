#include "cli/open_model.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "cli/build_model.h"
#include "kernels/base/status_macros.h"
#include "mimo/checkpoint/checkpoint.h"
#include "mimo/data/file.h"
#include "models/hf/checkpoint.h"
#include "models/hf/llava_config.h"
#include "models/llava/llava.h"

namespace mimo {

bool IsHuggingFaceFolder(const std::string& path) {
  return Exists(path + "/config.json") && !Exists(path + "/state.json");
}

absl::StatusOr<OpenedModel> OpenModel(const std::string& path,
                                      const Compute& compute,
                                      const ModuleRegistry& registry,
                                      bool thaw) {
  OpenedModel opened;
  opened.hugging_face = IsHuggingFaceFolder(path);
  if (opened.hugging_face) {
    opened.folder = path;
    MIMO_ASSIGN_OR_RETURN(const LlavaConfig config, ReadHfLlavaConfig(path));
    opened.section.llava = config;
    opened.section.model = LlavaModelConfig(config);
  } else {
    auto folder = FindCheckpoint(path);
    if (!folder.ok()) {
      return absl::NotFoundError(absl::StrCat(
          path, ": ",
          Exists(path) ? "neither config.json nor a checkpoint in it"
                       : "no such folder",
          ", wanted a Hugging Face folder or a training checkpoint"));
    }
    opened.folder = *std::move(folder);
    MIMO_ASSIGN_OR_RETURN(opened.config,
                          LoadYaml(opened.folder + "/config.yaml"));
    MIMO_ASSIGN_OR_RETURN(opened.section,
                          ReadModelSection(opened.config["model"], registry));
  }
  MimoModelConfig model = opened.section.model;
  if (thaw) {
    model.freeze_language_model = false;
    model.freeze_modality_encoders.clear();
    model.freeze_modality_projections.clear();
  }
  opened.allocator = std::make_unique<Allocator>(compute.stream);
  auto built = BuildModel(model, registry,
                          {.allocator = opened.allocator.get(),
                           .dtype = compute.dtype,
                           .initialize = false,
                           .trainable = thaw});
  if (!built.ok()) {
    return absl::Status(built.status().code(),
                        absl::StrCat(path, ": ", built.status().message()));
  }
  opened.model = *std::move(built);
  const std::vector<Parameter*> parameters = opened.model->Parameters();
  if (opened.hugging_face) {
    MIMO_RETURN_IF_ERROR(LoadHfParameters(opened.folder, parameters));
  } else {
    MIMO_RETURN_IF_ERROR(
        LoadSlices(opened.folder, "model", SlicesOf(parameters)));
  }
  return opened;
}

}  // namespace mimo
