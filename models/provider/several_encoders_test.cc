// Models of two encoders under layouts of in-process ranks: of one modality, or
// each of its own. What each rank computes is what one rank does.
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "models/mimo_model/tiny_llava.h"
#include "models/provider/layout_testing.h"

namespace mimo {
namespace {

using Module = ModuleParallelismConfig;
using Modules = std::vector<std::pair<std::string, Module>>;

constexpr int32_t kSketchToken = 32;

// Nine tokens of each image or sketch, a wider model.
ClipVitConfig SecondEncoder() {
  ClipVitConfig config = LayoutModel().vision;
  config.num_layers = 4;  // of which 3 run
  config.hidden_size = 18;
  config.patch_size = 2;
  return config;
}

ModuleSpec ProjectorFor(const ClipVitConfig& encoder) {
  ProjectorConfig config = LayoutModel().projector;
  config.input_size = encoder.hidden_size;
  config.output_size = LayoutModel().language.hidden_size;
  return ModuleSpec("projector", config);
}

MimoModelConfig TwoEncoders(bool projection_each) {
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

MimoModelConfig TwoModalities() {
  MimoModelConfig model = LlavaModelConfig(LayoutModel());
  ClipVitConfig encoder = SecondEncoder();
  encoder.num_channels = 1;
  model.modality_submodules_spec["sketches"] = {
      .encoders = {{"vit", ModuleSpec("clip_vit", encoder)}},
      .input_projections = {ProjectorFor(encoder)}};
  model.special_token_ids["sketches"] = kSketchToken;
  return model;
}

struct Kind {
  std::string modality;
  int32_t token;
  int tokens;              // an item
  Shape shape;             // of it
  std::vector<int> items;  // of each sample, in turn
};

const Kind kBoth = {
    "images", kImageToken, 4 + 9, {3, 6, 6}, {1, 0, 3, 0, 1, 2}};
const Kind kImages = {"images", kImageToken, 4, {3, 6, 6}, {1, 0, 3, 0, 0, 1}};
const Kind kSketches = {
    "sketches", kSketchToken, 9, {1, 6, 6}, {0, 0, 1, 2, 1, 1, 3}};

// Items of each kind between text, of different counts.
std::vector<Sample> Samples(const std::vector<Kind>& kinds) {
  std::vector<Sample> samples(kSamples);
  PhiloxSequence random(8, 0);
  for (int i = 0; i < kSamples; ++i) {
    Sample& sample = samples[i];
    for (const Kind& kind : kinds) {
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

struct Layout {
  DeploymentMode mode;
  int ranks;
  Modules modules;
  MimoParallelismConfig Config() const {
    return {.deployment_mode = mode, .module_parallelisms = modules};
  }
};

constexpr auto kHomogeneous = DeploymentMode::kHomogeneous;
constexpr auto kColocated = DeploymentMode::kColocated;
constexpr auto kHeterogeneous = DeploymentMode::kHeterogeneous;

Module Cp(int cp, Module module) {
  module.context_parallel_size = cp;
  return module;
}

Module Sp(Module module) {
  module.sequence_parallel = true;
  return module;
}

TEST(SeveralEncoders, OfOneModality) {
  const std::vector<Layout> layouts = {
      {kHomogeneous, 3, {{"images", Sizes(1, 3)}, {"language", Sizes(1, 3)}}},
      {kHomogeneous,
       4,
       {{"images", Cp(2, Sizes(2, 1))}, {"language", Cp(2, Sizes(2, 1))}}},
      {kColocated, 6, {{"images", Sizes(1, 6)}, {"language", Sizes(2, 3)}}},
      {kColocated, 6, {{"images", Sizes(3, 2)}, {"language", Sizes(1, 6)}}},
      {kColocated,
       4,
       {{"images", Sp(Sizes(2, 2))}, {"language", Sizes(1, 2, 0, 2)}}},
      {kHeterogeneous,
       5,
       {{"images", Sizes(1, 2)}, {"language", Sizes(1, 3, 2)}}},
      {kHeterogeneous,
       4,
       {{"images", Sizes(2, 1)}, {"language", Sizes(1, 1, 2, 2)}}},
      {kHeterogeneous,
       3,
       {{"images", Sizes(1, 2)}, {"language", Sizes(1, 2, 1)}}},
      // Each encoder's layers over the stages.
      {kHomogeneous,
       4,
       {{"images", Sp(Sizes(2, 1, 0, 2))},
        {"language", Sp(Sizes(2, 1, 0, 2))}}},
      {kHeterogeneous,
       5,
       {{"images", Sizes(1, 1, 0, 3)}, {"language", Sizes(1, 2, 3)}}},
      {kHeterogeneous,
       8,
       {{"images", Sp(Sizes(3, 1, 2, 2))}, {"language", Sizes(1, 1, 0, 2)}}},
  };
  for (const Layout& layout : layouts) {
    for (bool projection_each : {false, true}) {
      SCOPED_TRACE(testing::Message()
                   << &layout - layouts.data() << " " << projection_each);
      Trial trial{.model = TwoEncoders(projection_each),
                  .micro_batches = {Samples({kBoth})}};
      ExpectEqualToOneRank(layout.Config(), layout.ranks, trial);
      // Text alone between images, in several micro-batches.
      trial.micro_batches = {Samples({kBoth}), Samples({}), Samples({kBoth})};
      trial.model.freeze_modality_encoders["images"] = projection_each;
      ExpectEqualToOneRank(layout.Config(), layout.ranks, trial);
    }
  }
}

TEST(SeveralEncoders, OfTheirOwnModalities) {
  const Module stages = Sizes(1, 1, 0, 2);
  const std::vector<Layout> layouts = {
      {kHomogeneous,
       3,
       {{"images", Sizes(1, 3)},
        {"sketches", Sizes(1, 3)},
        {"language", Sizes(1, 3)}}},
      {kHomogeneous,
       4,
       {{"images", Cp(2, Sizes(2, 1))},
        {"sketches", Cp(2, Sizes(2, 1))},
        {"language", Cp(2, Sizes(2, 1))}}},
      {kHomogeneous,
       2,
       {{"images", stages}, {"sketches", stages}, {"language", stages}}},
      {kColocated,
       6,
       {{"images", Sizes(1, 6)},
        {"sketches", Sizes(3, 2)},
        {"language", Sizes(2, 3)}}},
      {kColocated,
       4,
       {{"images", Sizes(1, 4)},
        {"sketches", Sp(Sizes(2, 2))},
        {"language", Sizes(2, 1, 0, 2)}}},
      {kColocated,
       4,
       {{"images", Cp(2, Sizes(1, 2))},
        {"sketches", Sizes(2, 2)},
        {"language", Cp(2, Sizes(2, 1))}}},
      // A span for each, and as many replicas as no other has.
      {kHeterogeneous,
       6,
       {{"images", Sizes(1, 1)},
        {"sketches", Sizes(1, 2, 1)},
        {"language", Sizes(1, 3, 3)}}},
      {kHeterogeneous,
       6,
       {{"images", Sizes(1, 2, 4)},
        {"sketches", Sizes(2, 1, 2)},
        {"language", Sizes(1, 1, 0, 2)}}},
      // One deeper than the other and than the language model.
      {kHeterogeneous,
       6,
       {{"images", Sizes(1, 1)},
        {"sketches", Sizes(1, 1, 1, 3)},
        {"language", Sizes(1, 1, 4, 2)}}},
      {kHeterogeneous,
       6,
       {{"images", Sizes(1, 1, 0, 4)},
        {"sketches", Sizes(1, 1, 4)},
        {"language", Sizes(1, 1, 5)}}},
      // One span for both.
      {kHeterogeneous,
       4,
       {{"images", Sizes(1, 2)},
        {"sketches", Sizes(2, 1)},
        {"language", Sizes(1, 1, 2, 2)}}},
      {kHeterogeneous,
       4,
       {{"images", Sizes(1, 2)},
        {"sketches", Sizes(1, 1, 0, 2)},
        {"language", Sizes(2, 1, 2)}}},
      // In part that of the other, or the language model's.
      {kHeterogeneous,
       4,
       {{"images", Sizes(1, 2)},
        {"sketches", Sizes(1, 2, 1)},
        {"language", Sizes(1, 2, 2)}}},
      {kHeterogeneous,
       3,
       {{"images", Sizes(1, 1)},
        {"sketches", Sizes(1, 2, 1)},
        {"language", Sizes(1, 3)}}},
  };
  const auto frozen = [](int i) {
    MimoModelConfig model = TwoModalities();
    if (i == 1) model.freeze_modality_encoders["images"] = true;
    if (i == 2) {
      model.freeze_modality_encoders["sketches"] = true;
      model.freeze_modality_projections["sketches"] = true;
    }
    if (i == 3) {
      model.freeze_language_model = true;
      model.freeze_modality_encoders["sketches"] = true;
    }
    return model;
  };
  // Both, either or none in a micro-batch.
  const auto both = Samples({kImages, kSketches}), none = Samples({});
  const auto images = Samples({kImages}), sketches = Samples({kSketches});
  for (const Layout& layout : layouts) {
    const int i = &layout - layouts.data();
    SCOPED_TRACE(i);
    const Trial trials[] = {
        {.model = frozen(0), .micro_batches = {both}},
        {.model = frozen(0), .micro_batches = {images}},
        {.model = frozen(0), .micro_batches = {sketches, none, both, images}},
        {.model = frozen(1 + i % 3),
         .micro_batches = {both, images, none, sketches, both}},
        {.model = frozen(1 + (i + 1) % 3),
         .micro_batches = {none, sketches},
         .run_ahead = 2},
    };
    for (const Trial& trial : trials) {
      SCOPED_TRACE(&trial - trials);
      ExpectEqualToOneRank(layout.Config(), layout.ranks, trial);
    }
  }
}

}  // namespace
}  // namespace mimo
