// A model to use: out of a Hugging Face folder, or of a training checkpoint.
#ifndef MIMO_CLI_OPEN_MODEL_H_
#define MIMO_CLI_OPEN_MODEL_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cli/compute.h"
#include "mimo/config/config_node.h"
#include "models/llava/model_section.h"
#include "models/mimo_model/mimo_model.h"

namespace mimo {

struct OpenedModel {
  std::string folder;  // of the weights: the folder, or its newest iteration
  bool hugging_face;
  ConfigNode config;  // a training checkpoint's whole config; else empty
  ModelSection section;
  std::unique_ptr<Allocator> allocator;
  std::unique_ptr<MimoModel> model;

  Context context() const { return {.allocator = allocator.get()}; }
};

bool IsHuggingFaceFolder(const std::string& path);

// `thaw`: every parameter gets a gradient, whatever the checkpoint froze.
absl::StatusOr<OpenedModel> OpenModel(const std::string& path,
                                      const Compute& compute,
                                      const ModuleRegistry& registry,
                                      bool thaw = false);

}  // namespace mimo

#endif  // MIMO_CLI_OPEN_MODEL_H_
