// Models of two encoders, of one modality or each of its own, and samples for
// them. For tests.
#ifndef MIMO_MODELS_PROVIDER_ENCODERS_TESTING_H_
#define MIMO_MODELS_PROVIDER_ENCODERS_TESTING_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "models/mimo_model/tiny_llava.h"
#include "models/provider/layout_testing.h"

namespace mimo {

inline constexpr int32_t kSketchToken = 32;

// Nine tokens of each image or sketch, a wider model.
inline ClipVitConfig SecondEncoder() {
  ClipVitConfig config = LayoutModel().vision;
  config.num_layers = 4;  // of which 3 run
  config.hidden_size = 18;
  config.patch_size = 2;
  return config;
}

inline ModuleSpec ProjectorFor(const ClipVitConfig& encoder) {
  ProjectorConfig config = LayoutModel().projector;
  config.input_size = encoder.hidden_size;
  config.output_size = LayoutModel().language.hidden_size;
  return ModuleSpec("projector", config);
}

inline MimoModelConfig TwoEncoders(bool projection_each) {
  MimoModelConfig model = LlavaModelConfig(LayoutModel());
  ModalitySpec& images = model.modality_submodules_spec["images"];
  ClipVitConfig second = SecondEncoder();
  if (projection_each) {
    images.input_projections.push_back(ProjectorFor(second));
  } else {
    second.hidden_size = LayoutModel().vision.hidden_size;
  }
  images.encoders.emplace_back("second", ModuleSpec("clip_vit", second));
  return model;
}

inline MimoModelConfig TwoModalities() {
  MimoModelConfig model = LlavaModelConfig(LayoutModel());
  ClipVitConfig encoder = SecondEncoder();
  encoder.num_channels = 1;
  model.modality_submodules_spec["sketches"] = {
      .encoders = {{"vit", ModuleSpec("clip_vit", encoder)}},
      .input_projections = {ProjectorFor(encoder)}};
  model.special_token_ids["sketches"] = kSketchToken;
  return model;
}

inline constexpr auto kHomogeneous = DeploymentMode::kHomogeneous;
inline constexpr auto kColocated = DeploymentMode::kColocated;
inline constexpr auto kHeterogeneous = DeploymentMode::kHeterogeneous;

struct LayoutCase {
  DeploymentMode mode;
  int ranks;
  std::vector<std::pair<std::string, ModuleParallelismConfig>> modules;
  MimoParallelismConfig Config() const {
    return {.deployment_mode = mode, .module_parallelisms = modules};
  }
};

struct ItemKind {
  std::string modality;
  int32_t token;
  int tokens;              // an item
  Shape shape;             // of it
  std::vector<int> items;  // of each sample, in turn
};

inline const ItemKind kItemsOfBothEncoders = {
    "images", kImageToken, 4 + 9, {3, 6, 6}, {1, 0, 3, 0, 1, 2}};
inline const ItemKind kImageItems = {
    "images", kImageToken, 4, {3, 6, 6}, {1, 0, 3, 0, 0, 1}};
inline const ItemKind kSketchItems = {
    "sketches", kSketchToken, 9, {1, 6, 6}, {0, 0, 1, 2, 1, 1, 3}};

// Items of each kind between text, of different counts.
inline std::vector<Sample> Samples(const std::vector<ItemKind>& kinds) {
  std::vector<Sample> samples(kSamples);
  PhiloxSequence random(8, 0);
  for (int i = 0; i < kSamples; ++i) {
    Sample& sample = samples[i];
    for (const ItemKind& kind : kinds) {
      for (int n = 0; n < kind.items[i % kind.items.size()]; ++n) {
        sample.input_ids.push_back(random.Below(kImageToken));
        sample.input_ids.insert(sample.input_ids.end(), kind.tokens,
                                kind.token);
        sample.modalities[kind.modality].push_back(
            RandomItem(kind.shape, random));
      }
    }
    for (int t = 0; t < 1 + i % 4; ++t)
      sample.input_ids.push_back(random.Below(kImageToken));
    sample.labels = sample.input_ids;
    for (int32_t& label : sample.labels)
      if (label >= kImageToken) label = kIgnoreLabel;
  }
  return samples;
}

}  // namespace mimo

#endif  // MIMO_MODELS_PROVIDER_ENCODERS_TESTING_H_
