// ModalitySubmodule: the encoders and the projections of one modality; and its
// decoders and the projection to them, which nothing runs.
#ifndef MIMO_MODELS_MIMO_MODEL_MODALITY_SUBMODULE_H_
#define MIMO_MODELS_MIMO_MODEL_MODALITY_SUBMODULE_H_

#include <cstdint>
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
  // The last stage of the modality's pipeline has the input projections, the
  // first the output projection.
  static absl::StatusOr<std::unique_ptr<ModalitySubmodule>> Build(
      const ModalitySpec& spec, const ModuleRegistry& registry,
      BuildContext build);

  // Features of every encoder in order, each [items, tokens, size]; where they
  // are not joined [1, tokens, size], so that an only encoder's items may be of
  // any lengths. No inputs: none.
  absl::StatusOr<std::vector<Var>> Encode(
      const Context& ctx, const std::map<std::string, Tensor>& inputs) const;
  // Joined, of each item the tokens of one encoder after another's ->
  // [tokens, size]; an empty list is an error.
  absl::StatusOr<Var> Combine(const Context& ctx,
                              const std::vector<Var>& features) const;
  // The joined features through the projection, or each through its own, then
  // joined -> [tokens, H]. On a stage before the last: what it passes on.
  absl::StatusOr<Var> Project(const Context& ctx,
                              const std::vector<Var>& features) const;
  // Encode and Project. `features`, if any, are the encoders' features that
  // exist already, encoded ahead. Then there must be no inputs.
  absl::StatusOr<Var> Forward(const Context& ctx,
                              const std::map<std::string, Tensor>& inputs,
                              const std::vector<Var>& features = {}) const;

  // Of several stages: what one passes to the next of items that have `rows`
  // rows in the end, several encoders' packed; an error when no items have.
  absl::StatusOr<Shape> PassedShape(int64_t rows) const;
  // Encode of a later one, which goes on from that.
  absl::StatusOr<std::vector<Var>> Continue(const Context& ctx,
                                            const Var& passed,
                                            int64_t rows) const;

  // Of hidden states [tokens, H] of the language model: an error.
  absl::StatusOr<Var> Decode(const Context& ctx, const Var& hidden) const;

  std::vector<std::string> encoder_names() const;
  int64_t output_size() const;  // of this stage
  bool EncodersTrainable() const;
  void FreezeEncoders();
  void FreezeProjections();

 private:
  using Module::Module;
  absl::Status BuildProjections(const ModalitySpec& spec,
                                const ModuleRegistry& registry);
  absl::Status BuildDecoders(const ModalitySpec& spec,
                             const ModuleRegistry& registry);

  // How many items the features of `items` are joined by on this stage.
  int64_t JoinedItems(int64_t items) const;
  // That have `rows` rows in the end.
  absl::StatusOr<int64_t> ItemsOf(int64_t rows) const;

  std::vector<std::pair<std::string, ModalityEncoder*>> encoders_;
  std::vector<Projection*> projections_;  // none: features pass as they are
};

}  // namespace mimo

#endif  // MIMO_MODELS_MIMO_MODEL_MODALITY_SUBMODULE_H_
