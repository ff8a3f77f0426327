#include "models/mimo_model/mimo_model.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "mimo/autograd/ops/cast.h"
#include "mimo/autograd/ops/embedding.h"

namespace mimo {
namespace {

// Labelled rows come in multiples of it on a GPU: few shapes to capture.
constexpr size_t kRowsStep = 128;

}  // namespace

absl::StatusOr<TokenLayout> LayOutTokens(
    Allocator& allocator, absl::Span<const int32_t> input_ids,
    const std::map<std::string, int64_t>& special_token_ids,
    int64_t vocab_size) {
  std::vector<int32_t> text_ids(input_ids.begin(), input_ids.end());
  std::map<int32_t, std::vector<int32_t>> positions;
  for (const auto& [modality, id] : special_token_ids) positions[id];
  for (size_t t = 0; t < input_ids.size(); ++t) {
    const auto found = positions.find(input_ids[t]);
    if (found != positions.end()) {
      text_ids[t] = -1;
      found->second.push_back(static_cast<int32_t>(t));
    } else if (input_ids[t] < 0 || input_ids[t] >= vocab_size) {
      return Invalid(
          "", absl::StrCat("input_ids: token ", input_ids[t], " at position ",
                           t, ", wanted 0 to ", vocab_size - 1));
    }
  }
  const auto upload = [&](const std::vector<int32_t>& values) {
    return Tensor::From<int32_t>(allocator,
                                 {static_cast<int64_t>(values.size())}, values);
  };
  TokenLayout layout{upload(text_ids), {}};
  for (const auto& [modality, id] : special_token_ids)
    layout.positions[modality] = upload(positions[id]);
  return layout;
}

absl::StatusOr<Var> AlignEmbeddingsByTokenPositions(
    const Context& ctx, const TokenLayout& layout, Parameter& embedding,
    const std::vector<std::pair<std::string, Var>>& modality_embeddings) {
  if (!layout.text_ids.defined() && modality_embeddings.empty()) {
    return Invalid("", "No modality embeddings provided");
  }
  std::map<std::string, Tensor> unfilled = layout.positions;
  std::vector<PlacedRows> placed;
  for (const auto& [modality, rows] : modality_embeddings) {
    const auto found = layout.positions.find(modality);
    if (found == layout.positions.end()) {
      return Invalid("", absl::StrCat("No special token ID defined for "
                                      "modality ",
                                      modality));
    }
    const int64_t tokens = found->second.numel();
    if (tokens != rows.value.dim(0)) {
      return Invalid("",
                     absl::StrCat("Number of ", modality, " tokens (", tokens,
                                  ") does not match number of ", modality,
                                  " embeddings (", rows.value.dim(0), ")"));
    }
    unfilled.erase(modality);
    placed.push_back({rows, found->second});
  }
  for (const auto& [modality, positions] : unfilled) {
    if (positions.numel() > 0) {
      return Invalid(
          "", absl::StrCat("Number of ", modality, " tokens (",
                           positions.numel(), ") does not match number of ",
                           modality, " embeddings (0)"));
    }
  }
  return EmbedAndPlace(ctx, layout.text_ids, embedding, placed);
}

absl::StatusOr<std::unique_ptr<MimoModel>> MimoModel::Build(
    const MimoModelConfig& config, const ModuleRegistry& registry,
    BuildContext build) {
  std::unique_ptr<MimoModel> self(new MimoModel(config, build));
  MIMO_ASSIGN_OR_RETURN(auto language, registry.Build<LanguageModel>(
                                           config.language_model_spec,
                                           build.Child("language_model")));
  self->language_model_ = language.get();
  self->AdoptChild(std::move(language));
  const LanguageModel& lm = *self->language_model_;
  for (const auto& [name, spec] : config.modality_submodules_spec) {
    const std::string path = absl::StrCat("modality_submodules.", name);
    MIMO_ASSIGN_OR_RETURN(
        auto modality,
        ModalitySubmodule::Build(spec, registry, build.Child(path)));
    self->modalities_[name] = modality.get();
    self->AdoptChild(std::move(modality));
    if (!config.special_token_ids.contains(name)) {
      return Invalid("", absl::StrCat("No special token ID defined for "
                                      "modality ",
                                      name));
    }
  }
  std::map<int64_t, std::string> taken;
  for (const auto& [modality, id] : config.special_token_ids) {
    if (!self->modalities_.contains(modality)) {
      return Invalid("", absl::StrCat("special_token_ids.", modality,
                                      ": the model has no such modality"));
    }
    if (const auto [at, added] = taken.emplace(id, modality); !added) {
      return Invalid(
          "", absl::StrCat("special_token_ids.", modality, ": ", id,
                           ", wanted another than that of ", at->second));
    }
    if (id < 0 || id >= lm.vocab_size()) {
      return Invalid(
          "", absl::StrCat("special_token_ids.", modality, ": ", id,
                           ", wanted less than vocab_size ", lm.vocab_size()));
    }
  }
  MIMO_RETURN_IF_ERROR(self->Freeze());
  return self;
}

absl::Status MimoModel::Freeze() {
  if (config_.freeze_language_model) language_model_->Freeze();
  for (bool encoders : {true, false}) {
    const auto& flags = encoders ? config_.freeze_modality_encoders
                                 : config_.freeze_modality_projections;
    for (const auto& [name, freeze] : flags) {
      const auto found = modalities_.find(name);
      if (found == modalities_.end()) {
        return Invalid("",
                       absl::StrCat(encoders ? "freeze_modality_encoders."
                                             : "freeze_modality_projections.",
                                    name, ": no such modality"));
      }
      if (!freeze) continue;
      if (encoders) {
        found->second->FreezeEncoders();
      } else {
        found->second->FreezeProjections();
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Var> MimoModel::ModalityFeatures(
    const Context& ctx, const std::string& modality,
    const std::map<std::string, Tensor>& inputs, const Var& features) const {
  const auto found = modalities_.find(modality);
  if (found == modalities_.end()) {
    return Invalid("", absl::StrCat("inputs of modality ", modality,
                                    ": the model has no such modality"));
  }
  MIMO_ASSIGN_OR_RETURN(Var rows,
                        found->second->Forward(ctx, inputs, features));
  if (rows.value.dim(1) != language_model_->hidden_size()) {
    return Invalid(found->second->path(),
                   absl::StrCat("embeddings ", ToString(rows.value.shape()),
                                ", wanted ", language_model_->hidden_size(),
                                " columns, the language model's hidden_size"));
  }
  return rows;
}

absl::StatusOr<ModelInputs> MimoModel::Prepare(
    const Context& ctx, absl::Span<const int32_t> input_ids, int64_t batch,
    int64_t seq, ModalityInputs modalities, int64_t cached) const {
  const int64_t limit = language_model_->max_sequence_length();
  if (cached + seq > limit) {
    return Invalid("", absl::StrCat("input_ids: sequence of ", cached + seq,
                                    " tokens, wanted at most "
                                    "max_sequence_length ",
                                    limit));
  }
  MIMO_ASSIGN_OR_RETURN(
      TokenLayout layout,
      LayOutTokens(*ctx.allocator, input_ids,
                   cached == 0 ? config_.special_token_ids
                               : std::map<std::string, int64_t>(),
                   language_model_->vocab_size()));
  return ModelInputs{.batch = batch,
                     .seq = seq,
                     .cached = cached,
                     .layout = std::move(layout),
                     .modalities = std::move(modalities)};
}

absl::StatusOr<ModelInputs> MimoModel::Prepare(const Context& ctx,
                                               const MicroBatch& batch) const {
  MIMO_ASSIGN_OR_RETURN(ModelInputs inputs,
                        Prepare(ctx, batch.input_ids, batch.batch, batch.seq,
                                InputsOf(ctx, batch)));
  const std::vector<int32_t> following =
      ShiftLabels(batch.labels, batch.batch, batch.seq);
  const int64_t vocab = language_model_->vocab_size();
  std::vector<int32_t> rows, targets;
  for (size_t t = 0; t < following.size(); ++t) {
    if (following[t] == kIgnoreLabel) continue;
    if (following[t] < 0 || following[t] >= vocab) {
      return Invalid(
          "", absl::StrCat("labels: token ", following[t], ", wanted 0 to ",
                           vocab - 1, " or ", kIgnoreLabel));
    }
    rows.push_back(static_cast<int32_t>(t));
    targets.push_back(following[t]);
  }
  const bool all = rows.size() == following.size();
  if (!all && ctx.compute.device != Device::kCpu) {
    const size_t padded = (rows.size() + kRowsStep - 1) / kRowsStep * kRowsStep;
    const size_t most = following.size() - 1;  // as many as all means all
    rows.resize(std::min(padded, most), -1);
    targets.resize(rows.size(), -1);
  }
  const Shape shape = {static_cast<int64_t>(rows.size())};
  if (!all) {
    inputs.loss_rows = Tensor::From<int32_t>(*ctx.allocator, shape, rows);
  }
  inputs.targets = Tensor::From<int32_t>(*ctx.allocator, shape, targets);
  return inputs;
}

absl::Status MimoModel::EncodeFrozen(const Context& ctx,
                                     ModelInputs& inputs) const {
  for (const auto& [name, modality] : modalities_) {
    const auto raw = inputs.modalities.find(name);
    if (raw == inputs.modalities.end() || raw->second.empty() ||
        modality->EncodersTrainable()) {
      continue;
    }
    MIMO_ASSIGN_OR_RETURN(const std::vector<Var> encoded,
                          modality->Encode(ctx, raw->second));
    MIMO_ASSIGN_OR_RETURN(const Var combined, modality->Combine(ctx, encoded));
    inputs.features[name] = combined.value;
    inputs.modalities.erase(raw);
  }
  return absl::OkStatus();
}

absl::StatusOr<Var> MimoModel::Forward(const Context& ctx,
                                       const ModelInputs& inputs,
                                       std::vector<KvCache>* caches,
                                       bool labelled_only) const {
  std::vector<std::pair<std::string, Var>> embeddings;
  for (const auto& [modality, encoder_inputs] : inputs.modalities) {
    if (encoder_inputs.empty()) continue;
    MIMO_ASSIGN_OR_RETURN(Var rows,
                          ModalityFeatures(ctx, modality, encoder_inputs));
    embeddings.emplace_back(modality, std::move(rows));
  }
  for (const auto& [modality, features] : inputs.features) {
    MIMO_ASSIGN_OR_RETURN(Var rows,
                          ModalityFeatures(ctx, modality, {}, Var{features}));
    embeddings.emplace_back(modality, std::move(rows));
  }
  MIMO_ASSIGN_OR_RETURN(
      const Var aligned,
      AlignEmbeddingsByTokenPositions(
          ctx, inputs.layout, language_model_->embedding(), embeddings));
  return language_model_->Forward(ctx, aligned, inputs.batch, inputs.seq,
                                  caches, inputs.cached,
                                  labelled_only ? inputs.loss_rows : Tensor());
}

ModalityInputs MimoModel::InputsOf(const Context& ctx,
                                   const MicroBatch& batch) const {
  ModalityInputs inputs;
  for (const auto& [name, items] : batch.modalities) {
    if (items.shape.empty() || items.shape[0] == 0) continue;
    const Shape shape(items.shape.begin(), items.shape.end());
    const Tensor values = Cast(
        ctx, Tensor::From<float>(*ctx.allocator, shape, items.values), dtype());
    const auto found = modalities_.find(name);
    if (found == modalities_.end()) {
      inputs[name]["?"] = values;  // Forward names what is wrong
      continue;
    }
    for (const std::string& encoder : found->second->encoder_names()) {
      inputs[name][encoder] = values;
    }
  }
  return inputs;
}

std::vector<int32_t> ShiftLabels(absl::Span<const int32_t> labels,
                                 int64_t batch, int64_t seq) {
  std::vector<int32_t> targets(batch * seq, kIgnoreLabel);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t s = 0; s + 1 < seq; ++s) {
      targets[b * seq + s] = labels[b * seq + s + 1];
    }
  }
  return targets;
}

}  // namespace mimo
