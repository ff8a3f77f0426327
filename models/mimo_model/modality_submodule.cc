#include "models/mimo_model/modality_submodule.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "mimo/autograd/ops/embedding.h"

namespace mimo {

absl::Status Invalid(absl::string_view path, absl::string_view why) {
  return absl::InvalidArgumentError(
      path.empty() ? std::string(why) : absl::StrCat(path, ": ", why));
}

absl::StatusOr<std::unique_ptr<ModalitySubmodule>> ModalitySubmodule::Build(
    const ModalitySpec& spec, const ModuleRegistry& registry,
    BuildContext build) {
  std::unique_ptr<ModalitySubmodule> self(new ModalitySubmodule(build));
  if (spec.encoders.empty()) {
    return Invalid(build.path, "no encoder, wanted at least one");
  }
  if (spec.input_projections.size() > 1) {
    return Invalid(build.path,
                   absl::StrCat(spec.input_projections.size(),
                                " input projections, wanted at most one"));
  }
  const BuildContext encoders = build.Child("encoders");
  for (const auto& [name, module] : spec.encoders) {
    MIMO_ASSIGN_OR_RETURN(auto encoder, registry.Build<ModalityEncoder>(
                                            module, encoders.Child(name)));
    const int64_t size = encoder->output_size();
    if (!self->encoders_.empty() &&
        self->encoders_[0].second->output_size() != size) {
      return Invalid(encoder->path(),
                     absl::StrCat("output size ", size, ", wanted ",
                                  self->encoders_[0].second->output_size(),
                                  " as of encoder ", self->encoders_[0].first));
    }
    self->encoders_.emplace_back(name, encoder.get());
    self->AdoptChild(std::move(encoder));
  }
  if (!spec.input_projections.empty()) {
    MIMO_ASSIGN_OR_RETURN(
        auto projection,
        registry.Build<Projection>(spec.input_projections[0],
                                   build.Child("input_projections.0")));
    const int64_t features = self->encoders_[0].second->output_size();
    if (projection->input_size() != features) {
      return Invalid(
          projection->path(),
          absl::StrCat("input_size: ", projection->input_size(), ", wanted ",
                       features, ", the encoder's output size"));
    }
    self->projection_ = projection.get();
    self->AdoptChild(std::move(projection));
  }
  return self;
}

std::vector<std::string> ModalitySubmodule::encoder_names() const {
  std::vector<std::string> names;
  for (const auto& [name, encoder] : encoders_) names.push_back(name);
  return names;
}

bool ModalitySubmodule::EncodersTrainable() const {
  return std::any_of(encoders_.begin(), encoders_.end(), [](const auto& named) {
    return named.second->Trainable();
  });
}

void ModalitySubmodule::FreezeEncoders() {
  for (auto& [name, encoder] : encoders_) encoder->Freeze();
}

void ModalitySubmodule::FreezeProjections() {
  if (projection_ != nullptr) projection_->Freeze();
}

absl::StatusOr<std::vector<Var>> ModalitySubmodule::Encode(
    const Context& ctx, const std::map<std::string, Tensor>& inputs) const {
  std::vector<Var> features;
  if (inputs.empty()) return features;
  for (const auto& [name, encoder] : encoders_) {
    const auto input = inputs.find(name);
    if (input == inputs.end()) {
      return Invalid(path(),
                     absl::StrCat("No inputs found for encoder '", name, "'"));
    }
    MIMO_ASSIGN_OR_RETURN(Var out, encoder->Forward(ctx, input->second));
    const int64_t rank = out.value.rank();
    if (rank != 2 && rank != 3) {
      return Invalid(encoder->path(),
                     absl::StrCat("output ", ToString(out.value.shape()),
                                  " is not supported. Expected 3D [items, "
                                  "tokens, H] or 2D [tokens, H]"));
    }
    const int64_t size = out.value.dim(rank - 1);
    if (size != encoder->output_size()) {
      return Invalid(
          encoder->path(),
          absl::StrCat("output ", ToString(out.value.shape()), ", wanted ",
                       encoder->output_size(), " columns"));
    }
    out.value = out.value.Reshape({out.value.numel() / size, size});
    features.push_back(std::move(out));
  }
  return features;
}

absl::StatusOr<Var> ModalitySubmodule::Combine(
    const Context& ctx, const std::vector<Var>& features) const {
  if (features.empty()) {
    return Invalid(path(), "Cannot combine empty list of embeddings");
  }
  if (features.size() == 1) return features[0];
  return ConcatRows(ctx, features);
}

absl::StatusOr<Var> ModalitySubmodule::Forward(
    const Context& ctx, const std::map<std::string, Tensor>& inputs,
    const Var& features) const {
  Var combined = features;
  if (features.value.defined()) {
    if (!inputs.empty()) {
      return Invalid(path(),
                     "encoder inputs and features are mutually exclusive");
    }
  } else {
    MIMO_ASSIGN_OR_RETURN(const std::vector<Var> encoded, Encode(ctx, inputs));
    MIMO_ASSIGN_OR_RETURN(combined, Combine(ctx, encoded));
  }
  return projection_ == nullptr ? combined
                                : projection_->Forward(ctx, combined);
}

}  // namespace mimo
