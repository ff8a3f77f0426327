// Modality submodules, the alignment of their embeddings, and what is refused.
#include <algorithm>
#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "comm/base/planned_communicator.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "mimo/checkpoint/checkpoint.h"
#include "models/mimo_model/mimo_stage.h"
#include "models/mimo_model/tiny_llava.h"

namespace mimo {
namespace {

using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;
using ModalitiesTest = MimoModelTest;

TEST_F(ModalitiesTest, BatchesThatDoNotFitAreErrors) {
  auto model = Build(Tiny());
  const MicroBatch good = TwoSamples();
  EXPECT_EQ(ForwardError(*model, good), "");
  MicroBatch batch = good;
  batch.input_ids[3] = 1;  // one image token fewer
  EXPECT_EQ(ForwardError(*model, batch),
            "Number of images tokens (7) does not match number of images "
            "embeddings (8)");
  batch = good;
  batch.modalities.clear();
  EXPECT_EQ(ForwardError(*model, batch),
            "modality_submodules.images: inputs are missing, but matching "
            "special tokens exist: 8, and 0 embeddings");
  batch = good;
  batch.modalities["sounds"] = batch.modalities["images"];
  EXPECT_THAT(ForwardError(*model, batch), HasSubstr("sounds"));
  batch = good;
  batch.input_ids[0] = 32;
  EXPECT_EQ(ForwardError(*model, batch),
            "input_ids: token 32 at position 0, wanted 0 to 31");
  batch = good;
  batch.modalities["images"].shape = {2, 3, 3, 12};
  EXPECT_EQ(ForwardError(*model, batch),
            "modality_submodules.images.encoders.clip_encoder: pixels "
            "[2, 3, 3, 12], wanted [images, 3, 6, 6]");
  batch.input_ids.assign(65, 1);
  batch.batch = 1;
  batch.seq = 65;
  EXPECT_THAT(ForwardError(*model, batch),
              HasSubstr("65 tokens, wanted at most max_sequence_length 64"));
}

TEST_F(ModalitiesTest, AlignmentErrors) {
  auto model = Build(Tiny());
  const Context ctx{.allocator = &allocator_};
  auto message = [&](const TokenLayout& layout, const ModuleVars& rows) {
    return std::string(AlignEmbeddingsByTokenPositions(
                           ctx, layout, model->language_model(), rows)
                           .status()
                           .message());
  };
  EXPECT_EQ(message({}, {}), "No modality embeddings provided");
  const TokenLayout layout =
      *LayOutTokens(allocator_, {1, kImageToken, 2},
                    TokensOfRank({3}, 3).tokens, {{"images", kImageToken}}, 32);
  const Var one{Tensor::Zeros(allocator_, {1, 24}, DType::kFloat32)};
  const Var two{Tensor::Zeros(allocator_, {2, 24}, DType::kFloat32)};
  EXPECT_EQ(message(layout, {{"sounds", one}}),
            "No special token ID defined for modality sounds");
  EXPECT_EQ(message(layout, {{"images", two}}),
            "Number of images tokens (1) does not match number of images "
            "embeddings (2)");
  EXPECT_EQ(message(layout, {}),
            "Number of images tokens (1) does not match number of images "
            "embeddings (0)");
  const Var narrow{Tensor::Zeros(allocator_, {1, 12}, DType::kFloat32)};
  EXPECT_EQ(message(layout, {{"images", narrow}}),
            "images embeddings of 12 columns, wanted 24, the language model's "
            "hidden_size");
  EXPECT_EQ(message(layout, {{"images", one}}), "");
}

TEST_F(ModalitiesTest, AlignmentPutsRowsInOrder) {
  // Two modalities, items of different length, row-major over the batch.
  auto model = Build(Tiny());
  const Context ctx{.allocator = &allocator_};
  const Parameter& table = model->language_model().embedding();
  const std::vector<int32_t> ids = {30, 1, 31, 31, 2, 31, 30, 30};
  const TokenLayout layout =
      *LayOutTokens(allocator_, ids, TokensOfRank({4, 4}, 4).tokens,
                    {{"images", 31}, {"sounds", 30}}, 32);
  auto rows = [&](int64_t n, float base) {
    Tensor t(allocator_, {n, 24}, DType::kFloat32);
    for (int64_t i = 0; i < t.numel(); ++i) t.span<float>()[i] = base + i / 24;
    return Var{t};
  };
  const auto out = AlignEmbeddingsByTokenPositions(
      ctx, layout, model->language_model(),
      {{"images", rows(3, 100)}, {"sounds", rows(3, 200)}});
  ASSERT_TRUE(out.ok()) << out.status();
  const auto got = out->value.span<float>();
  const std::vector<float> first = {200, 0, 100, 101, 0, 102, 201, 202};
  for (size_t t = 0; t < ids.size(); ++t) {
    const float want =
        ids[t] >= 30 ? first[t] : table.data.span<float>()[ids[t] * 24];
    EXPECT_EQ(got[t * 24], want) << t;
  }
}

TEST_F(ModalitiesTest, SubmoduleErrors) {
  auto submodule = ModalitySubmodule::Build(
      LlavaModelConfig(Tiny()).modality_submodules_spec.at("images"),
      BuiltinModules(), {.allocator = &allocator_, .path = "images"});
  ASSERT_TRUE(submodule.ok()) << submodule.status();
  const Context ctx{.allocator = &allocator_};
  EXPECT_TRUE((*submodule)->Encode(ctx, {})->empty());
  EXPECT_EQ((*submodule)->Combine(ctx, {}).status().message(),
            "images: Cannot combine empty list of embeddings");
  const auto of_items = [&](int64_t items) {
    return Var{Tensor::Zeros(allocator_, {items, 4, 12}, DType::kFloat32)};
  };
  EXPECT_EQ(
      (*submodule)->Combine(ctx, {of_items(2), of_items(1)}).status().message(),
      "images: features [1, 4, 12], wanted those of 2 items as of the "
      "first encoder");
  EXPECT_EQ((*submodule)->Encode(ctx, {{"other", Tensor()}}).status().message(),
            "images: No inputs found for encoder 'clip_encoder'");
}

TEST_F(ModalitiesTest, FeaturesStandForTheEncoders) {
  auto submodule = ModalitySubmodule::Build(
      LlavaModelConfig(Tiny()).modality_submodules_spec.at("images"),
      BuiltinModules(), {.allocator = &allocator_, .path = "images"});
  ASSERT_TRUE(submodule.ok()) << submodule.status();
  const Context ctx{.allocator = &allocator_};
  const MicroBatch batch = TwoSamples();
  const auto inputs = Build(Tiny())->InputsOf(ctx, batch).at("images");
  const auto features = (*submodule)->Encode(ctx, inputs);
  ASSERT_TRUE(features.ok()) << features.status();
  const auto whole = (*submodule)->Forward(ctx, inputs);
  const auto ahead = (*submodule)->Forward(ctx, {}, *features);
  ASSERT_TRUE(whole.ok() && ahead.ok());
  EXPECT_TRUE(std::equal(whole->value.span<float>().begin(),
                         whole->value.span<float>().end(),
                         ahead->value.span<float>().begin()));
  EXPECT_EQ((*submodule)->Forward(ctx, inputs, *features).status().message(),
            "images: encoder inputs and features are mutually exclusive");
}

// Built where they would run, though nothing runs them.
TEST_F(ModalitiesTest, DecodersAndOutputProjections) {
  MimoModelConfig config = LlavaModelConfig(Tiny());
  auto& images = config.modality_submodules_spec["images"];
  images.decoders = {{"painter", config.language_model_spec}};
  images.output_projections = images.input_projections;
  for (int stage : {0, 1}) {
    PlannedCommunicator tp(1, 2), pp(stage, 2);
    const BuildContext build{.allocator = &allocator_,
                             .parallel = {.tp = &tp, .pp = &pp},
                             .path = "images"};
    const auto submodule =
        ModalitySubmodule::Build(images, BuiltinModules(), build);
    ASSERT_TRUE(submodule.ok()) << submodule.status();
    std::set<std::string> parts;
    for (const Parameter* p : (*submodule)->Parameters()) {
      const std::vector<std::string> names = absl::StrSplit(p->name, '.');
      parts.insert(names[1] + "." + names[2]);
      if (p->name == absl::StrCat("images.decoders.painter.layers.", stage,
                                  ".mlp.fc2.weight")) {
        EXPECT_EQ(p->data.shape(), Shape({24, 40 / 2}));  // its tp rank's
        parts.insert("layer");
      }
    }
    EXPECT_THAT(parts,
                UnorderedElementsAre(
                    "decoders.painter", "encoders.clip_encoder",
                    stage == 0 ? "output_projections.0" : "input_projections.0",
                    "layer"));
  }
  // Frozen and saved; the model trains as without them.
  auto model = MimoModel::Build(config, BuiltinModules(),
                                {.allocator = &allocator_, .seed = 11});
  ASSERT_TRUE(model.ok()) << model.status();
  const SliceMap saved = SlicesOf((*model)->Parameters());
  for (const Parameter* p : (*model)->Parameters()) {
    EXPECT_TRUE(saved.contains(p->name)) << p->name;
    EXPECT_TRUE(p->frozen || (!absl::StrContains(p->name, "decoders") &&
                              !absl::StrContains(p->name, "output_")));
  }
  const auto without = Build(Tiny());
  MimoStage stage(**model, allocator_), stage_without(*without, allocator_);
  const auto loss = stage.ForwardBackward({TwoSamples()}, 1);
  ASSERT_TRUE(loss.ok()) << loss.status();
  EXPECT_EQ(*loss, *stage_without.ForwardBackward({TwoSamples()}, 1));

  const Context ctx{.allocator = &allocator_};
  EXPECT_EQ((*model)->modality("images").Decode(ctx, Var()).status().message(),
            "modality_submodules.images: decode: other modalities than text "
            "are not generated");
  images.output_projections.push_back(images.output_projections[0]);
  EXPECT_EQ(BuildError(config),
            "modality_submodules.images: 2 output projections, wanted at most "
            "one");
}

TEST_F(ModalitiesTest, SpecErrorsNameTheModule) {
  MimoModelConfig config = LlavaModelConfig(Tiny());
  config.language_model_spec.type = "gtp";
  EXPECT_EQ(BuildError(config),
            "language_model: module: \"gtp\", wanted one of clip_vit, gpt, "
            "projector");
  config = LlavaModelConfig(Tiny());
  config.language_model_spec =
      config.modality_submodules_spec["images"].encoders[0].second;
  EXPECT_EQ(BuildError(config),
            "language_model: module type clip_vit cannot stand here, wanted a "
            "language model");
  config = LlavaModelConfig(Tiny());
  config.language_model_spec.config.As<GptConfig>()->num_query_groups = 3;
  EXPECT_THAT(BuildError(config),
              HasSubstr("language_model: num_query_groups"));
  config = LlavaModelConfig(Tiny());
  config.special_token_ids["images"] = 32;
  EXPECT_EQ(BuildError(config),
            "special_token_ids.images: 32, wanted less than vocab_size 32");
  config.special_token_ids.clear();
  EXPECT_EQ(BuildError(config),
            "No special token ID defined for modality images");
  config = LlavaModelConfig(Tiny());
  config.freeze_modality_encoders["sounds"] = true;
  EXPECT_EQ(BuildError(config),
            "freeze_modality_encoders.sounds: no such modality");
  config = LlavaModelConfig(Tiny());
  config.modality_submodules_spec["images"]
      .input_projections[0]
      .config.As<ProjectorConfig>()
      ->input_size = 13;
  EXPECT_THAT(
      BuildError(config),
      HasSubstr("input_size: 13, wanted 12, the encoder's output size"));
}

TEST_F(ModalitiesTest, SpecsAreDeepCopied) {
  MimoModelConfig config = LlavaModelConfig(Tiny());
  const MimoModelConfig copy = config;
  EXPECT_TRUE(copy == config);
  config.language_model_spec.config.As<GptConfig>()->num_layers = 7;
  EXPECT_FALSE(copy == config);
  EXPECT_EQ(copy.language_model_spec.config.As<GptConfig>()->num_layers, 2);
  EXPECT_EQ(config.language_model_spec.config.As<ClipVitConfig>(), nullptr);
}

}  // namespace
}  // namespace mimo
