#include "models/mimo_model/mimo_model.h"

#include <algorithm>
#include <iterator>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "comm/bridge/bridge_plan.h"
#include "kernels/base/status_macros.h"
#include "mimo/autograd/ops/cast.h"
#include "mimo/autograd/ops/ring_attention.h"

namespace mimo {
namespace {

// Labelled rows come in multiples of it on a GPU: few shapes to capture.
constexpr size_t kRowsStep = 128;

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
  return check_names("freeze_modality_projections",
                     config.freeze_modality_projections, ": no such modality");
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
            self->ContextOf(absl::StrCat("modality_submodules.", name), name),
            role.modules.at(name)));
    self->modalities_[name] = modality.get();
    self->AdoptChild(std::move(modality));
  }
  self->Freeze();
  return self;
}

std::vector<int32_t> MimoModel::OwnTokens(int64_t batch, int64_t seq) const {
  const ParallelGroups groups =
      placement_.GroupsOf(role().language_module_name);
  return TokensOfRank(batch, seq, groups.cp_size(), groups.cp_rank());
}

BuildContext MimoModel::ContextOf(const std::string& path,
                                  const std::string& modality) const {
  const std::string& name =
      modality.empty() ? role().language_module_name : modality;
  BuildContext context = build().Child(path);
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

absl::StatusOr<ModelInputs> MimoModel::Prepare(
    const Context& ctx, absl::Span<const int32_t> input_ids, int64_t batch,
    int64_t seq, ModalityInputs modalities, int64_t cached) const {
  ModelInputs inputs{.batch = batch,
                     .seq = seq,
                     .cached = cached,
                     .modalities = std::move(modalities)};
  // Generated tokens are text.
  const std::map<std::string, int64_t> special =
      cached == 0 ? config_.special_token_ids
                  : std::map<std::string, int64_t>();
  for (const auto& [name, raw] : inputs.modalities) {
    if (config_.modality_submodules_spec.contains(name)) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "inputs of modality ", name, ": the model has no such modality"));
  }
  inputs.sample_rows = SampleRows(input_ids, batch, special);
  for (const auto& [modality, rows] : inputs.sample_rows) {
    if (!modalities_.contains(modality)) continue;
    inputs.rows[modality] =
        std::accumulate(rows.begin(), rows.end(), int64_t{0});
  }
  if (language_model_ == nullptr) return inputs;
  const int64_t limit = language_model_->max_sequence_length();
  if (cached + seq > limit) {
    return absl::InvalidArgumentError(
        absl::StrCat("input_ids: sequence of ", cached + seq,
                     " tokens, wanted at most max_sequence_length ", limit));
  }
  const int cp_size =
      placement_.GroupsOf(role().language_module_name).cp_size();
  inputs.seq = ContextParallelLength(seq, cp_size) / cp_size;
  MIMO_ASSIGN_OR_RETURN(
      inputs.layout,
      LayOutTokens(*ctx.allocator, input_ids, OwnTokens(batch, seq), special,
                   language_model_->vocab_size()));
  return inputs;
}

absl::StatusOr<ModelInputs> MimoModel::Prepare(const Context& ctx,
                                               const MicroBatch& batch) const {
  MIMO_ASSIGN_OR_RETURN(ModelInputs inputs,
                        Prepare(ctx, batch.input_ids, batch.batch, batch.seq,
                                InputsOf(ctx, batch)));
  MIMO_RETURN_IF_ERROR(ShareRows(batch, inputs));
  if (language_model_ == nullptr) return inputs;
  const std::vector<int32_t> following =
      ShiftLabels(batch.labels, batch.batch, batch.seq);
  const std::vector<int32_t> own = OwnTokens(batch.batch, batch.seq);
  const int64_t vocab = language_model_->vocab_size();
  std::vector<int32_t> rows, targets;
  for (size_t i = 0; i < own.size(); ++i) {
    const int32_t next = own[i] < 0 ? kIgnoreLabel : following[own[i]];
    if (next == kIgnoreLabel) continue;
    if (next < 0 || next >= vocab) {
      return absl::InvalidArgumentError(
          absl::StrCat("labels: token ", next, ", wanted 0 to ", vocab - 1,
                       " or ", kIgnoreLabel));
    }
    rows.push_back(static_cast<int32_t>(i));
    targets.push_back(next);
  }
  const bool all = rows.size() == own.size();
  if (!all && ctx.compute.device != Device::kCpu) {
    const size_t padded = (rows.size() + kRowsStep - 1) / kRowsStep * kRowsStep;
    const size_t most = own.size() - 1;  // as many as all means all
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

absl::Status MimoModel::ShareRows(const MicroBatch& batch,
                                  ModelInputs& inputs) const {
  // Nobody shares it, or nothing of it is this rank's.
  if (placement_.infra == nullptr || role().modules.empty())
    return absl::OkStatus();
  const auto share = [](const std::vector<int64_t>& rows,
                        DataSlice slice) -> absl::StatusOr<int64_t> {
    MIMO_ASSIGN_OR_RETURN(const std::vector<int64_t> of_slices,
                          RowsOfLanes(rows, slice.size));
    return of_slices[slice.rank];
  };
  const DataSlice text = placement_.SliceOf(role().language_module_name);
  for (const auto& [name, spec] : config_.modality_submodules_spec) {
    const auto found = batch.sample_rows.find(name);
    if (found == batch.sample_rows.end()) {
      // Rows that are made where they are wanted are counted there.
      if (modalities_.contains(name) && language_model_ != nullptr &&
          placement_.SliceOf(name) == text) {
        continue;
      }
      return absl::InvalidArgumentError(
          absl::StrCat("sample_rows: none of modality ", name,
                       ", wanted those of the global micro-batch"));
    }
    const std::vector<int64_t>& rows = found->second;
    if (language_model_ != nullptr) {
      MIMO_ASSIGN_OR_RETURN(const int64_t wanted, share(rows, text));
      const std::vector<int64_t>& own = inputs.sample_rows[name];
      const int64_t here = std::accumulate(own.begin(), own.end(), int64_t{0});
      if (here != wanted) {
        return absl::InvalidArgumentError(absl::StrCat(
            "input_ids: ", here, " ", name, " tokens, wanted ", wanted,
            ", what sample_rows says of this replica's samples"));
      }
    }
    if (!modalities_.contains(name)) continue;
    MIMO_ASSIGN_OR_RETURN(inputs.rows[name],
                          share(rows, placement_.SliceOf(name)));
  }
  if (!batch.sample_rows.empty()) inputs.sample_rows = batch.sample_rows;
  return absl::OkStatus();
}

absl::Status MimoModel::EncodeFrozen(const Context& ctx,
                                     ModelInputs& inputs) const {
  for (const auto& [name, modality] : modalities_) {
    const auto raw = inputs.modalities.find(name);
    if (raw == inputs.modalities.end() || raw->second.empty() ||
        modality->EncodersTrainable()) {
      continue;
    }
    MIMO_ASSIGN_OR_RETURN(inputs.features[name],
                          modality->Encode(ctx, raw->second));
    inputs.modalities.erase(raw);
  }
  return absl::OkStatus();
}

absl::StatusOr<Var> MimoModel::ForwardModality(const Context& ctx,
                                               const std::string& name,
                                               const ModelInputs& inputs,
                                               const Var* received) const {
  const ModalitySubmodule& submodule = *modalities_.at(name);
  std::map<std::string, Tensor> raw;
  std::vector<Var> features;
  if (const auto at = inputs.modalities.find(name);
      at != inputs.modalities.end())
    raw = at->second;
  if (const auto at = inputs.features.find(name); at != inputs.features.end())
    features = at->second;
  if (received != nullptr) features.push_back(*received);
  const auto wanted = inputs.rows.find(name);
  if (!raw.empty() || !features.empty()) {
    MIMO_ASSIGN_OR_RETURN(Var rows, submodule.Forward(ctx, raw, features));
    if (role().IsLastStage(name) && wanted != inputs.rows.end()) {
      MIMO_RETURN_IF_ERROR(
          CheckRowCount(name, wanted->second, rows.value.dim(0)));
    }
    return rows;
  }
  if (wanted != inputs.rows.end() && wanted->second > 0) {
    return Invalid(
        submodule.path(),
        absl::StrCat("inputs are missing, but matching special tokens exist: ",
                     wanted->second, ", and 0 embeddings"));
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

absl::StatusOr<Var> MimoModel::ForwardLanguage(const Context& ctx,
                                               const ModelInputs& inputs,
                                               const ModuleVars& received,
                                               std::vector<KvCache>* caches,
                                               bool labelled_only) const {
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
  const bool select = labelled_only && role().IsLastStage(name);
  return language_model_->Forward(ctx, x, inputs.batch, inputs.seq, caches,
                                  inputs.cached,
                                  select ? inputs.loss_rows : Tensor());
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
                                       std::vector<KvCache>* caches,
                                       bool labelled_only) const {
  if (role().modules.empty()) {
    return absl::FailedPreconditionError("Rank has no modules assigned");
  }
  if (!HasWholeSamples()) {
    return absl::FailedPreconditionError(
        "a module is not whole on this rank, or not for the samples of its "
        "language model");
  }
  ModuleVars embeddings;
  if (inputs.cached == 0) {  // else the tokens are generated text
    MIMO_ASSIGN_OR_RETURN(embeddings, ForwardModalities(ctx, inputs));
  }
  return ForwardLanguage(ctx, inputs, embeddings, caches, labelled_only);
}

ModalityInputs MimoModel::InputsOf(const Context& ctx,
                                   const MicroBatch& batch) const {
  ModalityInputs inputs;
  for (const auto& [name, items] : batch.modalities) {
    if (items.shape.empty() || items.shape[0] == 0) continue;
    const auto found = modalities_.find(name);
    if (found == modalities_.end()) {
      // Another rank's, or one that the model has not: then Prepare says so.
      if (!config_.modality_submodules_spec.contains(name)) inputs[name];
      continue;
    }
    const Shape shape(items.shape.begin(), items.shape.end());
    const Tensor values = Cast(
        ctx, Tensor::From<float>(*ctx.allocator, shape, items.values), dtype());
    for (const std::string& encoder : found->second->encoder_names()) {
      inputs[name][encoder] = values;
    }
  }
  return inputs;
}

}  // namespace mimo
