#include "models/mimo_model/mimo_model.h"

#include <algorithm>
#include <iterator>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

// Token ids of modalities that exist, each its own, and flags of those alone.
absl::Status CheckConfig(const MimoModelConfig& config) {
  std::map<int64_t, std::string> taken;
  for (const auto& [name, spec] : config.modality_submodules_spec) {
    const auto id = config.special_token_ids.find(name);
    if (id == config.special_token_ids.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("No special token ID defined for modality ", name));
    }
    if (const auto [at, added] = taken.emplace(id->second, name); !added) {
      return absl::InvalidArgumentError(
          absl::StrCat("special_token_ids.", name, ": ", id->second,
                       ", wanted another than that of ", at->second));
    }
  }
  const auto check_names = [&](absl::string_view key, const auto& map,
                               absl::string_view why) -> absl::Status {
    for (const auto& [name, value] : map) {
      if (config.modality_submodules_spec.contains(name)) continue;
      return absl::InvalidArgumentError(absl::StrCat(key, ".", name, why));
    }
    return absl::OkStatus();
  };
  MIMO_RETURN_IF_ERROR(check_names("special_token_ids",
                                   config.special_token_ids,
                                   ": the model has no such modality"));
  MIMO_RETURN_IF_ERROR(check_names("freeze_modality_encoders",
                                   config.freeze_modality_encoders,
                                   ": no such modality"));
  MIMO_RETURN_IF_ERROR(check_names("freeze_modality_projections",
                                   config.freeze_modality_projections,
                                   ": no such modality"));
  std::map<std::string, Quantization> of_modalities = config.quantization;
  of_modalities.erase("language");
  return check_names("quantization", of_modalities,
                     ": no such module, wanted language or a modality");
}

}  // namespace

RankRole WholeModel(const MimoModelConfig& config) {
  RankRole role;
  role.modules[role.language_module_name] = {};
  for (const auto& [name, spec] : config.modality_submodules_spec)
    role.modules[name] = {};
  return role;
}

uint64_t ModuleRngSeed(uint64_t seed, const MimoModelConfig& config,
                       absl::string_view modality, int stage) {
  int64_t offset = 2;
  if (!modality.empty()) {
    const auto& all = config.modality_submodules_spec;
    const auto place =
        std::distance(all.begin(), all.find(std::string(modality)));
    offset = place == 0 ? 1 : 2 + place;
  }
  return seed + 10000 * offset + 100 * stage;
}

absl::StatusOr<std::unique_ptr<MimoModel>> MimoModel::Build(
    const MimoModelConfig& config, const ModuleRegistry& registry,
    BuildContext build, std::optional<ModelPlacement> placement) {
  MIMO_RETURN_IF_ERROR(CheckConfig(config));
  if (!placement) placement.emplace().role = WholeModel(config);
  if (placement->role.modules.empty()) {
    return absl::WrapUnique(
        new MimoStubModel(config, std::move(build), *std::move(placement)));
  }
  std::unique_ptr<MimoModel> self(
      new MimoModel(config, std::move(build), *std::move(placement)));
  const RankRole& role = self->role();
  if (role.HasLanguageModule()) {
    MIMO_RETURN_IF_ERROR(self->BuildLanguageModel(registry));
  }
  for (const std::string& name : role.ModalityModuleNames()) {
    const auto spec = config.modality_submodules_spec.find(name);
    CHECK(spec != config.modality_submodules_spec.end()) << name;
    MIMO_ASSIGN_OR_RETURN(
        auto modality,
        ModalitySubmodule::Build(
            spec->second, registry,
            self->ContextOf(absl::StrCat("modality_submodules.", name), name)));
    if (role.HasLanguageModule() && role.IsLastStage(name)) {
      MIMO_RETURN_IF_ERROR(CheckWidth(name, modality->output_size(),
                                      self->language_model().hidden_size()));
    }
    self->modalities_[name] = modality.get();
    self->AdoptChild(std::move(modality));
  }
  self->Freeze();
  return self;
}

BuildContext MimoModel::ContextOf(const std::string& path,
                                  const std::string& modality) const {
  const std::string& name =
      modality.empty() ? role().language_module_name : modality;
  BuildContext context = build().Child(path);
  context.quantization = config_.QuantizationOf(modality);
  context.parallel = placement_.GroupsOf(name);
  context.rng_seed = ModuleRngSeed(context.seed, config_, modality,
                                   context.parallel.pp_rank());
  return context;
}

absl::Status MimoModel::BuildLanguageModel(const ModuleRegistry& registry) {
  MIMO_ASSIGN_OR_RETURN(auto language, registry.Build<LanguageModel>(
                                           config_.language_model_spec,
                                           ContextOf("language_model")));
  for (const auto& [modality, id] : config_.special_token_ids) {
    if (id < 0 || id >= language->vocab_size()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "special_token_ids.", modality, ": ", id,
          ", wanted less than vocab_size ", language->vocab_size()));
    }
  }
  language_model_ = language.get();
  AdoptChild(std::move(language));
  return absl::OkStatus();
}

Module& MimoModel::module(const std::string& name) const {
  if (name == role().language_module_name) return language_model();
  return *modalities_.at(name);
}

// Modules of other ranks are theirs to freeze.
void MimoModel::Freeze() {
  if (config_.freeze_language_model && language_model_ != nullptr)
    language_model_->Freeze();
  const auto wanted = [](const std::map<std::string, bool>& flags,
                         const std::string& modality) {
    const auto found = flags.find(modality);
    return found != flags.end() && found->second;
  };
  for (const auto& [name, submodule] : modalities_) {
    if (wanted(config_.freeze_modality_encoders, name))
      submodule->FreezeEncoders();
    if (wanted(config_.freeze_modality_projections, name))
      submodule->FreezeProjections();
  }
}

absl::Status MimoModel::EncodeFrozen(const Context& ctx,
                                     const std::string& name,
                                     ModelInputs& inputs) const {
  const ModalitySubmodule& submodule = modality(name);
  const auto raw = inputs.modalities.find(name);
  const auto received = inputs.received.find(name);
  const bool first = received == inputs.received.end();
  if ((first && (raw == inputs.modalities.end() || raw->second.empty())) ||
      submodule.EncodersTrainable())
    return absl::OkStatus();
  if (!submodule.Trainable()) {
    MIMO_ASSIGN_OR_RETURN(inputs.outputs[name],
                          ForwardModality(ctx, name, inputs));
  } else {
    MIMO_ASSIGN_OR_RETURN(inputs.features[name],
                          first ? submodule.Encode(ctx, raw->second)
                                : submodule.Continue(ctx, received->second,
                                                     inputs.rows.at(name)));
  }
  inputs.modalities.erase(name);
  inputs.received.erase(name);
  return absl::OkStatus();
}

absl::StatusOr<Var> MimoModel::ForwardModality(const Context& ctx,
                                               const std::string& name,
                                               const ModelInputs& inputs,
                                               const Var* received) const {
  if (const auto at = inputs.outputs.find(name); at != inputs.outputs.end())
    return at->second;
  const ModalitySubmodule& submodule = *modalities_.at(name);
  std::map<std::string, Tensor> raw;
  std::vector<Var> features;
  if (const auto at = inputs.modalities.find(name);
      at != inputs.modalities.end())
    raw = at->second;
  if (const auto at = inputs.features.find(name); at != inputs.features.end())
    features = at->second;
  if (const auto at = inputs.received.find(name); at != inputs.received.end())
    received = &at->second;
  const int64_t rows = inputs.rows.at(name);  // behind the last stage
  if (received != nullptr) {
    if (!raw.empty()) {
      return Invalid(submodule.path(),
                     "inputs and what the stage before passed are mutually "
                     "exclusive");
    }
    if (rows > 0) {
      MIMO_ASSIGN_OR_RETURN(features, submodule.Continue(ctx, *received, rows));
      return submodule.Project(ctx, features);
    }
  } else if (!raw.empty() || !features.empty()) {
    MIMO_ASSIGN_OR_RETURN(Var out, submodule.Forward(ctx, raw, features));
    if (role().IsLastStage(name)) {
      MIMO_RETURN_IF_ERROR(CheckRowCount(name, rows, out.value.dim(0)));
      return out;
    }
    MIMO_ASSIGN_OR_RETURN(const Shape passed, submodule.PassedShape(rows));
    if (out.value.shape() == passed) return out;
    return Invalid(
        submodule.path(),
        absl::StrCat("features ", ToString(out.value.shape()), ", wanted ",
                     ToString(passed), " of items with ", rows, " tokens"));
  } else if (rows > 0) {
    return Invalid(
        submodule.path(),
        absl::StrCat("inputs are missing, but matching special tokens exist: ",
                     rows, ", and 0 embeddings"));
  }
  // No rows, but who receives them sends a gradient back, as if there were.
  const Tensor none = ctx.Empty({0, submodule.output_size()}, dtype());
  return ctx.tape != nullptr && submodule.Trainable() ? ctx.tape->Input(none)
                                                      : Var{none};
}

absl::StatusOr<ModuleVars> MimoModel::ForwardModalities(
    const Context& ctx, const ModelInputs& inputs) const {
  ModuleVars outputs;
  for (const auto& [name, submodule] : modalities_) {
    MIMO_ASSIGN_OR_RETURN(outputs[name], ForwardModality(ctx, name, inputs));
  }
  return outputs;
}

absl::StatusOr<Var> MimoModel::ForwardLanguage(
    const Context& ctx, const ModelInputs& inputs, const ModuleVars& received,
    std::vector<KvCache>* caches) const {
  const std::string& name = role().language_module_name;
  Var x;
  if (role().IsFirstStage(name)) {
    MIMO_ASSIGN_OR_RETURN(
        x, AlignEmbeddingsByTokenPositions(ctx, inputs.layout, *language_model_,
                                           received));
  } else {
    const auto hidden = received.find(name);
    CHECK(hidden != received.end())
        << "a later stage of " << name << " goes on from the one before";
    x = hidden->second;
  }
  const int cp_size = placement_.GroupsOf(name).cp_size();
  if (caches != nullptr && cp_size > 1) {
    return absl::UnimplementedError(absl::StrCat(
        "context_parallel_size: ", cp_size, ", wanted 1 to generate tokens"));
  }
  return language_model_->Forward(
      ctx, x, inputs.batch, inputs.seq, caches, inputs.cached,
      role().IsLastStage(name) ? inputs.loss_rows : Tensor(), inputs.packing);
}

bool MimoModel::HasWholeSamples() const {
  const std::string& language = role().language_module_name;
  std::vector<std::string> names = {language};
  for (const auto& [name, spec] : config_.modality_submodules_spec)
    names.push_back(name);
  return std::ranges::all_of(names, [&](const std::string& name) {
    return role().IsFirstStage(name) && role().IsLastStage(name) &&
           placement_.SliceOf(name) == placement_.SliceOf(language);
  });
}

absl::StatusOr<Var> MimoModel::Forward(const Context& ctx,
                                       const ModelInputs& inputs,
                                       std::vector<KvCache>* caches) const {
  if (!HasWholeSamples()) {
    return absl::FailedPreconditionError(
        "a module is not whole on this rank, or not for the samples of its "
        "language model");
  }
  ModuleVars embeddings;
  if (inputs.cached == 0) {  // else the tokens are generated text
    MIMO_ASSIGN_OR_RETURN(embeddings, ForwardModalities(ctx, inputs));
  }
  return ForwardLanguage(ctx, inputs, embeddings, caches);
}

absl::StatusOr<Var> MimoStubModel::Forward(const Context&, const ModelInputs&,
                                           std::vector<KvCache>*) const {
  return absl::FailedPreconditionError("Rank has no modules assigned");
}

}  // namespace mimo
