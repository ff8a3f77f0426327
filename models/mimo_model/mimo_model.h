// MimoModel: a language model and the modalities it reads.
//
// Each modality has encoders, whose features are joined along the tokens
// (encoder-major), and a projection into the language model's space. Projected
// rows replace the embeddings of the modality's special token, in order.
#ifndef MIMO_MODELS_MIMO_MODEL_MIMO_MODEL_H_
#define MIMO_MODELS_MIMO_MODEL_MIMO_MODEL_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "mimo/data/batch.h"
#include "models/mimo_model/modality_submodule.h"
#include "models/spec/module_spec.h"

namespace mimo {

// Raw inputs: modality -> encoder -> tensor.
using ModalityInputs = std::map<std::string, std::map<std::string, Tensor>>;

// Where each modality's rows go in a flattened batch; int32, on the device.
struct TokenLayout {
  Tensor text_ids;  // [B*S] the id; -1 at special tokens
  std::map<std::string, Tensor> positions;  // of special tokens, each [n]
};
// Errors: an id that is neither special nor in [0, vocab_size).
absl::StatusOr<TokenLayout> LayOutTokens(
    Allocator& allocator, absl::Span<const int32_t> input_ids,
    const std::map<std::string, int64_t>& special_token_ids,
    int64_t vocab_size);

// A batch on the device: all that a pass reads. Preparing one checks what the
// host knows and uploads; running it then reads no value on the host, so that
// a pass can be captured and replayed.
struct ModelInputs {
  int64_t batch, seq;  // B, S
  int64_t cached;      // tokens before these, in the caches
  TokenLayout layout;
  ModalityInputs modalities;  // raw: e.g. pixels
  // Of modalities that were encoded ahead, in place of their raw inputs: the
  // combined features [n, size].
  std::map<std::string, Tensor> features;
  // What the labelled rows predict; undefined when there are no labels. Behind
  // the labelled ones there may be some of -1, so that batches have few sizes.
  Tensor loss_rows;  // [L] int32: rows of [B*S]; undefined: L = B*S, all
  Tensor targets;    // [L] int32: the token that follows
};

// Embeddings [B*S, H]: text by the language model's table, and each modality's
// rows [n, H] at its special tokens, in order.
// Errors: no id for a modality; counts that differ; special tokens of a
// modality that has no embeddings.
absl::StatusOr<Var> AlignEmbeddingsByTokenPositions(
    const Context& ctx, const TokenLayout& layout, Parameter& embedding,
    const std::vector<std::pair<std::string, Var>>& modality_embeddings);

class MimoModel : public Module {
 public:
  // Specs are copied; `config` is not changed. Errors name the module's path.
  static absl::StatusOr<std::unique_ptr<MimoModel>> Build(
      const MimoModelConfig& config, const ModuleRegistry& registry,
      BuildContext build);

  // A whole batch; every encoder of a modality gets all of its items. Errors:
  // what Forward would, and a label that the vocabulary does not have.
  absl::StatusOr<ModelInputs> Prepare(const Context& ctx,
                                      const MicroBatch& batch) const;
  // Token ids [B*S] with inputs that are on the device already, no labels.
  // After `cached` ones, tokens are generated: text, whatever their id.
  absl::StatusOr<ModelInputs> Prepare(const Context& ctx,
                                      absl::Span<const int32_t> input_ids,
                                      int64_t batch, int64_t seq,
                                      ModalityInputs modalities = {},
                                      int64_t cached = 0) const;
  // Runs the modalities' frozen encoders: `inputs` has their features then, and
  // no raw inputs of theirs. A pass over it does the rest.
  absl::Status EncodeFrozen(const Context& ctx, ModelInputs& inputs) const;
  // -> final hidden states [B*S, H]; with `labelled_only` those of the rows
  // that the loss reads, [L, H].
  absl::StatusOr<Var> Forward(const Context& ctx, const ModelInputs& inputs,
                              std::vector<KvCache>* caches = nullptr,
                              bool labelled_only = false) const;
  // Projected rows of one modality [n, H]; `features` as ModalitySubmodule's.
  absl::StatusOr<Var> ModalityFeatures(
      const Context& ctx, const std::string& modality,
      const std::map<std::string, Tensor>& inputs,
      const Var& features = Var()) const;

  LanguageModel& language_model() const { return *language_model_; }
  const MimoModelConfig& config() const { return config_; }
  DType dtype() const { return build().dtype; }

  // A batch's items as inputs: every encoder of a modality gets them all.
  ModalityInputs InputsOf(const Context& ctx, const MicroBatch& batch) const;

 private:
  MimoModel(MimoModelConfig config, BuildContext build)
      : Module(std::move(build)), config_(std::move(config)) {}
  absl::Status Freeze();

  MimoModelConfig config_;
  LanguageModel* language_model_ = nullptr;
  std::map<std::string, ModalitySubmodule*> modalities_;
};

// targets[t] = labels[t+1] within each sample, kIgnoreLabel at its end: what
// row t predicts. labels [B*S]
std::vector<int32_t> ShiftLabels(absl::Span<const int32_t> labels,
                                 int64_t batch, int64_t seq);

}  // namespace mimo

#endif  // MIMO_MODELS_MIMO_MODEL_MIMO_MODEL_H_
