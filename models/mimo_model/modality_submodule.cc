#include "models/mimo_model/modality_submodule.h"

#include <algorithm>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "mimo/autograd/ops/embedding.h"

namespace mimo {

absl::Status Invalid(absl::string_view path, absl::string_view why) {
  return absl::InvalidArgumentError(
      path.empty() ? std::string(why) : absl::StrCat(path, ": ", why));
}

namespace {

// [items*tokens, size] <-> [items, tokens, size]
Var ByItem(Var rows, int64_t items) {
  const Tensor& value = rows.value;
  rows.value = value.Reshape({items, value.dim(0) / items, value.dim(1)});
  return rows;
}
Var Flat(Var features) {
  const Tensor& value = features.value;
  features.value = value.Reshape({value.dim(0) * value.dim(1), value.dim(2)});
  return features;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ModalitySubmodule>> ModalitySubmodule::Build(
    const ModalitySpec& spec, const ModuleRegistry& registry,
    BuildContext build) {
  std::unique_ptr<ModalitySubmodule> self(new ModalitySubmodule(build));
  if (spec.encoders.empty()) {
    return Invalid(build.path, "no encoder, wanted at least one");
  }
  const size_t projections = spec.input_projections.size();
  if (projections > 1 && projections != spec.encoders.size()) {
    return Invalid(build.path,
                   absl::StrCat(projections,
                                " input projections, wanted at most one, "
                                "or one for each of ",
                                spec.encoders.size(), " encoders"));
  }
  if (spec.output_projections.size() > 1) {
    return Invalid(build.path, absl::StrCat(spec.output_projections.size(),
                                            " output projections, wanted at "
                                            "most one"));
  }
  const BuildContext encoders = build.Child("encoders");
  for (const auto& [name, module] : spec.encoders) {
    MIMO_ASSIGN_OR_RETURN(auto encoder, registry.Build<ModalityEncoder>(
                                            module, encoders.Child(name)));
    const int64_t size = encoder->output_size();
    if (projections <= 1 && !self->encoders_.empty() &&
        self->encoders_[0].second->output_size() != size) {
      return Invalid(encoder->path(),
                     absl::StrCat("output size ", size, ", wanted ",
                                  self->encoders_[0].second->output_size(),
                                  " as of encoder ", self->encoders_[0].first));
    }
    self->encoders_.emplace_back(name, encoder.get());
    self->AdoptChild(std::move(encoder));
  }
  if (build.parallel.IsLastStage()) {
    MIMO_RETURN_IF_ERROR(self->BuildProjections(spec, registry));
  }
  MIMO_RETURN_IF_ERROR(self->BuildDecoders(spec, registry));
  return self;
}

absl::Status ModalitySubmodule::BuildProjections(
    const ModalitySpec& spec, const ModuleRegistry& registry) {
  BuildContext one_stage = build();
  one_stage.parallel.pp = nullptr;
  for (size_t i = 0; i < spec.input_projections.size(); ++i) {
    const std::string name = absl::StrCat("input_projections.", i);
    MIMO_ASSIGN_OR_RETURN(auto projection,
                          registry.Build<Projection>(spec.input_projections[i],
                                                     one_stage.Child(name)));
    const int64_t features = encoders_[i].second->output_size();
    if (projection->input_size() != features) {
      return Invalid(
          projection->path(),
          absl::StrCat("input_size: ", projection->input_size(), ", wanted ",
                       features, ", the encoder's output size"));
    }
    if (i > 0 && projection->output_size() != output_size()) {
      return Invalid(
          projection->path(),
          absl::StrCat("output_size: ", projection->output_size(), ", wanted ",
                       output_size(), " as of the first projection"));
    }
    projections_.push_back(projection.get());
    AdoptChild(std::move(projection));
  }
  return absl::OkStatus();
}

absl::Status ModalitySubmodule::BuildDecoders(const ModalitySpec& spec,
                                              const ModuleRegistry& registry) {
  BuildContext frozen = build();
  frozen.trainable = false;
  for (const auto& [name, module] : spec.decoders) {
    MIMO_ASSIGN_OR_RETURN(
        auto decoder, registry.Build<Module>(module, frozen.Child(absl::StrCat(
                                                         "decoders.", name))));
    AdoptChild(std::move(decoder));
  }
  if (!build().parallel.IsFirstStage()) return absl::OkStatus();
  frozen.parallel.pp = nullptr;
  for (const ModuleSpec& module : spec.output_projections) {
    MIMO_ASSIGN_OR_RETURN(auto projection,
                          registry.Build<Projection>(
                              module, frozen.Child("output_projections.0")));
    AdoptChild(std::move(projection));
  }
  return absl::OkStatus();
}

absl::StatusOr<Var> ModalitySubmodule::Decode(const Context& /*ctx*/,
                                              const Var& /*hidden*/) const {
  return absl::UnimplementedError(absl::StrCat(
      path(), ": decode: other modalities than text are not generated"));
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
  for (Projection* projection : projections_) projection->Freeze();
}

int64_t ModalitySubmodule::output_size() const {
  return projections_.empty() ? encoders_[0].second->output_size()
                              : projections_[0]->output_size();
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
    const int64_t rows = out.value.numel() / size;
    const int64_t items = JoinedItems(input->second.dim(0));
    if (rows % items != 0) {
      return Invalid(
          encoder->path(),
          absl::StrCat("output ", ToString(out.value.shape()), " of ", items,
                       " items, wanted as many tokens of each, to join other "
                       "encoders'"));
    }
    out.value = out.value.Reshape({rows, size});
    features.push_back(ByItem(std::move(out), items));
  }
  return features;
}

absl::StatusOr<Var> ModalitySubmodule::Combine(
    const Context& ctx, const std::vector<Var>& features) const {
  if (features.empty()) {
    return Invalid(path(), "Cannot combine empty list of embeddings");
  }
  const int64_t items = features[0].value.dim(0);
  std::vector<Var> flat;
  for (const Var& var : features) {
    const Tensor& value = var.value;
    if (value.dim(0) != items) {
      return Invalid(path(), absl::StrCat("features ", ToString(value.shape()),
                                          ", wanted those of ", items,
                                          " items as of the first encoder"));
    }
    flat.push_back(Flat(var));
  }
  return flat.size() == 1 ? flat[0] : ConcatRows(ctx, flat, items);
}

absl::StatusOr<Var> ModalitySubmodule::Project(
    const Context& ctx, const std::vector<Var>& features) const {
  if (!build().parallel.IsLastStage() && features.size() > 1) {
    std::vector<Var> passed;
    for (const Var& var : features) passed.push_back(Flat(var));
    return PackRows(ctx, passed);
  }
  if (projections_.size() > 1) {
    CHECK_EQ(features.size(), projections_.size()) << path();
    std::vector<Var> projected;
    for (size_t i = 0; i < features.size(); ++i) {
      projected.push_back(
          ByItem(projections_[i]->Forward(ctx, Flat(features[i])),
                 features[i].value.dim(0)));
    }
    return Combine(ctx, projected);
  }
  MIMO_ASSIGN_OR_RETURN(Var combined, Combine(ctx, features));
  return projections_.empty() ? combined
                              : projections_[0]->Forward(ctx, combined);
}

absl::StatusOr<Var> ModalitySubmodule::Forward(
    const Context& ctx, const std::map<std::string, Tensor>& inputs,
    const std::vector<Var>& features) const {
  if (!features.empty()) {
    if (!inputs.empty()) {
      return Invalid(path(),
                     "encoder inputs and features are mutually exclusive");
    }
    return Project(ctx, features);
  }
  MIMO_ASSIGN_OR_RETURN(const std::vector<Var> encoded, Encode(ctx, inputs));
  return Project(ctx, encoded);
}

int64_t ModalitySubmodule::JoinedItems(int64_t items) const {
  if (encoders_.size() == 1 || !build().parallel.IsLastStage()) return 1;
  return std::max<int64_t>(1, items);
}

absl::StatusOr<int64_t> ModalitySubmodule::ItemsOf(int64_t rows) const {
  int64_t of_item = 0;
  for (const auto& [name, encoder] : encoders_)
    of_item += encoder->item_features();
  if (rows % of_item == 0) return rows / of_item;
  return Invalid(path(), absl::StrCat(rows, " tokens, wanted a multiple of ",
                                      of_item, ", those of an item"));
}

absl::StatusOr<Shape> ModalitySubmodule::PassedShape(int64_t rows) const {
  MIMO_ASSIGN_OR_RETURN(const int64_t items, ItemsOf(rows));
  if (encoders_.size() == 1) return encoders_[0].second->PassedShape(items);
  int64_t elements = 0;
  for (const auto& [name, encoder] : encoders_)
    elements += NumElements(encoder->PassedShape(items));
  return Shape{elements, 1};
}

absl::StatusOr<std::vector<Var>> ModalitySubmodule::Continue(
    const Context& ctx, const Var& passed, int64_t rows) const {
  MIMO_ASSIGN_OR_RETURN(const int64_t items, ItemsOf(rows));
  std::vector<Var> features = {passed};
  if (encoders_.size() > 1) {
    std::vector<Shape> shapes;
    for (const auto& [name, encoder] : encoders_)
      shapes.push_back(encoder->PassedShape(items));
    features = UnpackRows(ctx, passed, shapes);
  }
  for (size_t i = 0; i < encoders_.size(); ++i) {
    features[i] = ByItem(encoders_[i].second->Continue(ctx, features[i], items),
                         JoinedItems(items));
  }
  return features;
}

}  // namespace mimo
