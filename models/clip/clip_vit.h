// ClipVit: CLIP's vision transformer, up to the layer whose features are used.
// Source: Radford et al. 2021, arXiv:2103.00020; features as LLaVA takes them,
// arXiv:2304.08485, section 4.1.
#ifndef MIMO_MODELS_CLIP_CLIP_VIT_H_
#define MIMO_MODELS_CLIP_CLIP_VIT_H_

#include "models/clip/config.h"
#include "models/spec/interfaces.h"

namespace mimo {

// Of tp ranks, all have the same pixels and get the same features; patches are
// embedded on each, and heads and feed-forward shared. cp ranks have images of
// their own.
//
// Layers past the feature layer, and the norm after the last, are kept for the
// checkpoint's sake but never run, so they are frozen.
class ClipVit : public ModalityEncoder {
 public:
  ClipVit(BuildContext build, const ClipVitConfig& config);
  int64_t output_size() const override { return config_.hidden_size; }
  // pixels [images, C, image_size, image_size] -> [images*features, H]
  absl::StatusOr<Var> Forward(const Context& ctx,
                              const Tensor& pixels) const override;

 private:
  ClipVitConfig config_;
  Parameter& class_token_;  // [H]
  LinearLayer& patch_;      // patch_embedding.weight [H, C*ps*ps]
  Parameter& position_;     // position_embedding.weight [1+P, H]
  NormLayer& pre_norm_;
  TransformerStack& layers_;
};

}  // namespace mimo

#endif  // MIMO_MODELS_CLIP_CLIP_VIT_H_
