// ClipVit: CLIP's vision transformer, up to the layer whose features are used.
// A pipeline stage has its part of the layers, the first one what makes tokens
// of pixels, and the last one what picks the features.
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
  int64_t item_features() const override { return config_.features(); }
  // [images*(1+P), H], token-sharded with sequence parallelism
  Shape PassedShape(int64_t images) const override;
  Var Continue(const Context& ctx, const Var& passed,
               int64_t images) const override;

 private:
  Var RunLayers(const Context& ctx, const Var& tokens, int64_t images) const;

  ClipVitConfig config_;
  // Null on later stages.
  Parameter* class_token_ = nullptr;  // [H]
  Parameter* position_ = nullptr;     // position_embedding.weight [1+P, H]
  LinearLayer* patch_ = nullptr;      // patch_embedding.weight [H, C*ps*ps]
  NormLayer* pre_norm_ = nullptr;
  TransformerStack* layers_;
  int64_t layers_run_;  // of this stage
};

}  // namespace mimo

#endif  // MIMO_MODELS_CLIP_CLIP_VIT_H_
