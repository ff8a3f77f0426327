// ClipVitConfig: sizes of a CLIP vision transformer. Defaults: ViT-L/14-336.
#ifndef MIMO_MODELS_CLIP_CONFIG_H_
#define MIMO_MODELS_CLIP_CONFIG_H_

#include <array>
#include <cstdint>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/activation/bias_activation.h"
#include "mimo/config/fields.h"
#include "models/transformer/recompute.h"

namespace mimo {

template <>
struct EnumNames<Activation> {
  static constexpr std::array<std::pair<Activation, absl::string_view>, 6>
      kNames = {{{Activation::kIdentity, "identity"},
                 {Activation::kGelu, "gelu"},
                 {Activation::kGeluTanh, "gelu_pytorch_tanh"},
                 {Activation::kQuickGelu, "quick_gelu"},
                 {Activation::kSilu, "silu"},
                 {Activation::kRelu, "relu"}}};
};

// Which tokens of the feature layer the projector sees.
enum class FeatureSelect {
  kDefault,  // patches without the class token
  kFull,     // all
};
template <>
struct EnumNames<FeatureSelect> {
  static constexpr std::array<std::pair<FeatureSelect, absl::string_view>, 2>
      kNames = {{{FeatureSelect::kDefault, "default"},
                 {FeatureSelect::kFull, "full"}}};
};

struct ClipVitConfig {
  int64_t num_layers = 24;
  int64_t hidden_size = 1024;
  int64_t ffn_hidden_size = 4096;
  int64_t num_attention_heads = 16;
  int64_t num_channels = 3;
  int64_t image_size = 336;
  int64_t patch_size = 14;
  // Hidden states to take: 0 is what enters the first layer, i what leaves
  // layer i; negative counts from the end (-1 the last layer's).
  int64_t feature_layer = -2;
  FeatureSelect feature_select_strategy = FeatureSelect::kDefault;
  double norm_epsilon = 1e-5;
  Activation activation = Activation::kQuickGelu;
  double init_std = 0.02;                   // of weights at the start
  double position_embedding_std = 0.02;     // of positions and the class token
  Recompute recompute = Recompute::kOff;    // activation checkpointing
  std::optional<int64_t> recompute_layers;  // of the first so many; else of all

  template <typename V>
  void Fields(V& v) {
    v("num_layers", num_layers);
    v("hidden_size", hidden_size);
    v("ffn_hidden_size", ffn_hidden_size);
    v("num_attention_heads", num_attention_heads);
    v("num_channels", num_channels);
    v("image_size", image_size);
    v("patch_size", patch_size);
    v("feature_layer", feature_layer);
    v("feature_select_strategy", feature_select_strategy);
    v("norm_epsilon", norm_epsilon);
    v("activation", activation);
    v("init_std", init_std);
    v("position_embedding_std", position_embedding_std);
    v("recompute", recompute);
    v("recompute_layers", recompute_layers);
  }
  absl::Status Validate() const;
  absl::Status CheckTensorParallel(int tp) const;
  absl::Status CheckPipeline(int pp) const;

  int64_t patches() const {  // of one image
    return (image_size / patch_size) * (image_size / patch_size);
  }
  int64_t features() const {  // tokens of one image after selection
    return patches() + (feature_select_strategy == FeatureSelect::kFull);
  }
  // How many layers run: those up to the feature layer.
  int64_t layers_used() const {
    return feature_layer < 0 ? num_layers + 1 + feature_layer : feature_layer;
  }
};

}  // namespace mimo

#endif  // MIMO_MODELS_CLIP_CONFIG_H_
