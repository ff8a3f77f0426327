// MimoModel: a language model and the modalities it reads.
//
// Each modality has encoders, whose features are joined item by item, the first
// encoder's tokens before the next one's, and a projection into the language
// model's space, or one an encoder. Projected rows replace the embeddings of
// the modality's special token, in order.
//
// A rank has the modules of its role alone. One that has all of them runs
// Forward; others run their part of it and pass the rest on.
#ifndef MIMO_MODELS_MIMO_MODEL_MIMO_MODEL_H_
#define MIMO_MODELS_MIMO_MODEL_MIMO_MODEL_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/log/check.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "mimo/data/batch.h"
#include "models/mimo_model/alignment.h"
#include "models/mimo_model/modality_submodule.h"
#include "models/mimo_model/model_placement.h"
#include "models/mimo_model/rank_role.h"
#include "models/spec/module_spec.h"

namespace mimo {

// Raw inputs: modality -> encoder -> tensor.
using ModalityInputs = std::map<std::string, std::map<std::string, Tensor>>;

// A batch on the device: all that a pass reads. Preparing one checks what the
// host knows and uploads; running it then reads no value on the host, so that
// a pass can be captured and replayed.
struct ModelInputs {
  // B, S, of the longest sample when they are packed; of cp ranks S is this
  // one's tokens of it.
  int64_t batch, seq;
  int64_t cached;  // tokens before these, in the caches
  // Each modality's tokens in each sample of the global micro-batch: how rows
  // are split when they go to other ranks. None of generated tokens.
  std::map<std::string, std::vector<int64_t>> sample_rows;
  std::map<std::string, int64_t> rows;  // that this rank's modalities give
  TokenLayout layout;  // of the language model's T, as are the last three
  ModalityInputs modalities;  // raw: e.g. pixels
  // What came ahead of the pass from the stage before, by modality, and the
  // schedule's edges along which such has moved, to this stage or from it.
  std::map<std::string, Var> received;
  std::set<int> moved;
  // Of modalities that were encoded ahead, in place of these: each encoder's
  // features [items, tokens, size].
  std::map<std::string, std::vector<Var>> features;
  // Likewise, of modalities with nothing to train: what ForwardModality gives.
  std::map<std::string, Var> outputs;
  // The rows whose hidden states are wanted, the labelled ones or all, and what
  // these predict (undefined when there are no labels). Behind the labelled
  // ones there may be some of -1, so that batches have few sizes.
  Tensor loss_rows;  // [L] int32: rows of the T; undefined: L = T, all
  Tensor targets;    // [L] int32: the token that follows; -1: no label
  Packing packing;   // undefined: T = B*S
  // Of each target but those of -1 behind, on the host: its sample of the B.
  std::vector<int32_t> target_samples;
};

struct PrepareOptions {
  // Hidden states of all tokens, not of the labelled ones alone, which cost
  // less.
  bool all_rows = false;
  // The samples' own tokens alone, without the padding that makes them equal.
  bool packed = false;
};

// The role of the only rank of a model: every module.
RankRole WholeModel(const MimoModelConfig& config);

// BuildContext::rng_seed of a stage of the language model (no modality) or of
// the modality's: `seed` and 100 a stage, and 20,000 for the language model,
// 10,000 for the first modality, 30,000, 40,000, .. for the others.
// Source: Megatron-Core, examples/mimo/training/runtime.py.
uint64_t ModuleRngSeed(uint64_t seed, const MimoModelConfig& config,
                       absl::string_view modality, int stage);

class MimoModel : public Module {
 public:
  // Builds this rank's modules (none: a MimoStubModel); without a placement,
  // all. Specs are copied; `config` is not changed. Errors name the module's
  // path.
  static absl::StatusOr<std::unique_ptr<MimoModel>> Build(
      const MimoModelConfig& config, const ModuleRegistry& registry,
      BuildContext build,
      std::optional<ModelPlacement> placement = std::nullopt);

  // A whole batch; every encoder of a modality gets all of its items. Errors:
  // what Forward would, inputs of a modality that the model has not, and a
  // label that the vocabulary does not have.
  absl::StatusOr<ModelInputs> Prepare(const Context& ctx,
                                      const MicroBatch& batch,
                                      const PrepareOptions& options = {}) const;
  // Token ids [B*S] with inputs that are on the device already, no labels.
  // After `cached` ones, tokens are generated: text, whatever their id.
  absl::StatusOr<ModelInputs> Prepare(const Context& ctx,
                                      absl::Span<const int32_t> input_ids,
                                      int64_t batch, int64_t seq,
                                      ModalityInputs modalities = {},
                                      int64_t cached = 0) const;
  // Runs what is frozen of a modality of this rank up to the first thing to
  // train, if its encoders are: `inputs` has its features or outputs then, and
  // neither raw nor received ones of it. A pass over it does the rest.
  absl::Status EncodeFrozen(const Context& ctx, const std::string& name,
                            ModelInputs& inputs) const;
  // ForwardModalities, then ForwardLanguage: of a rank that has all of every
  // module, for the same samples. An error on others (MimoStage runs those).
  virtual absl::StatusOr<Var> Forward(
      const Context& ctx, const ModelInputs& inputs,
      std::vector<KvCache>* caches = nullptr) const;

  // What a modality of this rank gives: rows [n, H] of its last stage, what
  // others pass on. `received`: those of the stage before, in place of
  // inputs, if they did not come ahead. Without either and without a special
  // token it gives [0, H], which takes a gradient; with one, that is an error.
  absl::StatusOr<Var> ForwardModality(const Context& ctx,
                                      const std::string& name,
                                      const ModelInputs& inputs,
                                      const Var* received = nullptr) const;
  // Of each modality of this rank.
  absl::StatusOr<ModuleVars> ForwardModalities(const Context& ctx,
                                               const ModelInputs& inputs) const;
  // The language model's stage on this rank. `received`: for the first, the
  // modalities' rows; else, by the language module's name, the hidden states of
  // the stage before. -> hidden states [T, H]; the last stage's [L, H], of
  // the rows that are wanted. Loss takes them, with inputs.targets.
  absl::StatusOr<Var> ForwardLanguage(
      const Context& ctx, const ModelInputs& inputs, const ModuleVars& received,
      std::vector<KvCache>* caches = nullptr) const;

  const RankRole& role() const { return placement_.role; }
  const ModelPlacement& placement() const { return placement_; }
  // One of this rank's, as role() names them.
  Module& module(const std::string& name) const;
  LanguageModel& language_model() const {
    CHECK(language_model_ != nullptr) << "no language model on this rank";
    return *language_model_;
  }
  const ModalitySubmodule& modality(const std::string& name) const {
    return *modalities_.at(name);
  }
  const MimoModelConfig& config() const { return config_; }
  DType dtype() const { return build().dtype; }

  // A batch's items as inputs: every encoder of a modality gets them all.
  ModalityInputs InputsOf(const Context& ctx, const MicroBatch& batch) const;

 protected:
  MimoModel(MimoModelConfig config, BuildContext build,
            ModelPlacement placement)
      : Module(std::move(build)),
        config_(std::move(config)),
        placement_(std::move(placement)) {}

 private:
  // Which tokens of a batch this rank's language model has, if there is one; no
  // lengths: whole samples.
  RankTokens OwnTokens(int64_t batch, int64_t seq,
                       absl::Span<const int32_t> lengths = {}) const;
  // Both Prepare's: all but the labels. `own` is what OwnTokens gave for the
  // `lengths`; with these the inputs are packed.
  absl::StatusOr<ModelInputs> LayOut(const Context& ctx,
                                     absl::Span<const int32_t> input_ids,
                                     int64_t batch, int64_t seq,
                                     ModalityInputs modalities, int64_t cached,
                                     absl::Span<const int32_t> lengths,
                                     const RankTokens& own) const;
  // Where a module of this rank is built; no modality: the language model.
  BuildContext ContextOf(const std::string& path,
                         const std::string& modality = "") const;
  absl::Status BuildLanguageModel(const ModuleRegistry& registry);
  void Freeze();
  // Whether it has all stages of every module, for the same samples.
  bool HasWholeSamples() const;
  // Of a batch that is a part of a global micro-batch: how many rows of it are
  // this rank's modalities'.
  absl::Status ShareRows(const MicroBatch& batch, ModelInputs& inputs) const;

  MimoModelConfig config_;
  ModelPlacement placement_;
  // Of this rank: null if it has none, and by name.
  LanguageModel* language_model_ = nullptr;
  std::map<std::string, ModalitySubmodule*> modalities_;
};

// What Build gives an idle rank: no modules, so nothing that it trains. It
// takes part in the world's operations (groups, sums, norms) as any rank does.
class MimoStubModel final : public MimoModel {
 public:
  // An error.
  absl::StatusOr<Var> Forward(
      const Context& ctx, const ModelInputs& inputs,
      std::vector<KvCache>* caches = nullptr) const override;

 private:
  friend class MimoModel;
  using MimoModel::MimoModel;
};

}  // namespace mimo

#endif  // MIMO_MODELS_MIMO_MODEL_MIMO_MODEL_H_
