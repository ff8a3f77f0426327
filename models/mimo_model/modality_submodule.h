// ModalitySubmodule: the encoders and the projection of one modality.
#ifndef MIMO_MODELS_MIMO_MODEL_MODALITY_SUBMODULE_H_
#define MIMO_MODELS_MIMO_MODEL_MODALITY_SUBMODULE_H_

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "models/spec/module_spec.h"

namespace mimo {

// "path: why".
absl::Status Invalid(absl::string_view path, absl::string_view why);

class ModalitySubmodule : public Module {
 public:
  static absl::StatusOr<std::unique_ptr<ModalitySubmodule>> Build(
      const ModalitySpec& spec, const ModuleRegistry& registry,
      BuildContext build);

  // Features of every encoder in order, each [tokens, size]. No inputs: none.
  absl::StatusOr<std::vector<Var>> Encode(
      const Context& ctx, const std::map<std::string, Tensor>& inputs) const;
  // Joined along the tokens; an empty list is an error.
  absl::StatusOr<Var> Combine(const Context& ctx,
                              const std::vector<Var>& features) const;
  // Encode, combine, project -> [tokens, H]. `features`, when defined, are
  // combined features that exist already (encoded ahead, or by another stage):
  // then there must be no inputs.
  absl::StatusOr<Var> Forward(const Context& ctx,
                              const std::map<std::string, Tensor>& inputs,
                              const Var& features = Var()) const;

  std::vector<std::string> encoder_names() const;
  bool EncodersTrainable() const;
  void FreezeEncoders();
  void FreezeProjections();

 private:
  using Module::Module;
  std::vector<std::pair<std::string, ModalityEncoder*>> encoders_;
  Projection* projection_ = nullptr;  // or null: features pass as they are
};

}  // namespace mimo

#endif  // MIMO_MODELS_MIMO_MODEL_MODALITY_SUBMODULE_H_
