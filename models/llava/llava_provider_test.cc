#include "models/llava/llava_provider.h"

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "models/infra/recording_world.h"
#include "models/llava/model_section.h"
#include "models/mimo_model/tiny_llava.h"

namespace mimo {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ModuleSpec Clip(const LlavaConfig& config) {
  return ModuleSpec("clip_vit", config.vision);
}

TEST(LlavaProvider, DefaultsAreVicunaAndClip) {
  const LlavaConfig config;
  const auto provider = LlavaMimoProvider::Create(config, Clip(config));
  ASSERT_TRUE(provider.ok()) << provider.status();
  const MimoModelConfig& model = provider->model;
  EXPECT_EQ(model.language_model_spec.type, "gpt");
  const GptConfig& gpt = *model.language_model_spec.config.As<GptConfig>();
  EXPECT_EQ(gpt.num_layers, 32);
  EXPECT_EQ(gpt.hidden_size, 4096);
  EXPECT_EQ(gpt.num_attention_heads, 32);
  EXPECT_EQ(gpt.groups(), 32);
  EXPECT_EQ(gpt.ffn_hidden_size, 11008);
  EXPECT_EQ(gpt.vocab_size, 32256);
  EXPECT_EQ(gpt.max_sequence_length, 4096);
  EXPECT_EQ(gpt.rotary_base, 10000);
  EXPECT_FALSE(gpt.tie_word_embeddings);
  EXPECT_EQ(model.special_token_ids,
            (std::map<std::string, int64_t>{{"images", 32000}}));
  ASSERT_EQ(model.modality_submodules_spec.size(), 1u);
  const ModalitySpec& images = model.modality_submodules_spec.at("images");
  ASSERT_EQ(images.encoders.size(), 1u);
  EXPECT_EQ(images.encoders[0].first, "clip_encoder");
  const auto& vit = *images.encoders[0].second.config.As<ClipVitConfig>();
  EXPECT_EQ(vit.num_layers, 24);
  EXPECT_EQ(vit.hidden_size, 1024);
  EXPECT_EQ(vit.image_size, 336);
  EXPECT_EQ(vit.patch_size, 14);
  ASSERT_EQ(images.input_projections.size(), 1u);
  const auto& mlp = *images.input_projections[0].config.As<ProjectorConfig>();
  EXPECT_EQ(mlp.type, ProjectorType::kMlp);
  EXPECT_EQ(mlp.input_size, 1024);
  EXPECT_EQ(mlp.output_size, 4096);
  // A projector has no attention, and its config no heads.
  EXPECT_THAT(ToYaml(mlp), ::testing::Not(HasSubstr("head")));
  EXPECT_FALSE(model.freeze_language_model);
  EXPECT_FALSE(provider->parallelism.has_value());
}

TEST(LlavaProvider, NeedsAVisionEncoder) {
  EXPECT_EQ(LlavaMimoProvider::Create({}, ModuleSpec()).status().message(),
            "vision_encoder_module must be provided");
}

TEST(LlavaProvider, EveryDefaultMayBeAnother) {
  LlavaConfig config;
  config.language.hidden_size = 128;
  config.language.vocab_size = 500;
  config.vision.hidden_size = 64;
  config.vision.num_attention_heads = 4;
  config.projector.type = ProjectorType::kAffine;
  config.special_token_ids = {{"images", 499}};
  config.freeze_language_model = true;
  config.freeze_modality_encoders = {{"images", true}};
  config.freeze_modality_projections = {{"images", true}};
  const auto provider = LlavaMimoProvider::Create(config, Clip(config));
  ASSERT_TRUE(provider.ok()) << provider.status();
  const MimoModelConfig& model = provider->model;
  EXPECT_TRUE(model.language_model_spec == ModuleSpec("gpt", config.language));
  const ModalitySpec& images = model.modality_submodules_spec.at("images");
  EXPECT_TRUE(images.encoders[0].second == Clip(config));
  const auto& projector =
      *images.input_projections[0].config.As<ProjectorConfig>();
  EXPECT_EQ(projector.type, ProjectorType::kAffine);
  EXPECT_EQ(projector.input_size, 64);
  EXPECT_EQ(projector.output_size, 128);
  EXPECT_EQ(model.special_token_ids.at("images"), 499);
  EXPECT_TRUE(model.freeze_language_model);
  EXPECT_TRUE(model.freeze_modality_encoders.at("images"));
  EXPECT_TRUE(model.freeze_modality_projections.at("images"));
  config.special_token_ids = {{"images", 500}};
  EXPECT_THAT(
      std::string(
          LlavaMimoProvider::Create(config, Clip(config)).status().message()),
      HasSubstr("wanted less than language.vocab_size 500"));
}

TEST(LlavaProvider, LogitDtypeIsForwarded) {
  LlavaConfig config;
  for (const std::optional<DType> dtype :
       {std::optional<DType>(), {DType::kFloat32}}) {
    config.language.logit_dtype = dtype;
    const auto provider = LlavaMimoProvider::Create(config, Clip(config));
    ASSERT_TRUE(provider.ok()) << provider.status();
    EXPECT_EQ(
        provider->model.language_model_spec.config.As<GptConfig>()->logit_dtype,
        dtype);
  }
}

// Each number of an item is a token.
struct NumbersConfig {
  int64_t size = 12;
  template <typename V>
  void Fields(V& v) {
    v("size", size);
  }
};
class NumbersEncoder : public ModalityEncoder {
 public:
  NumbersEncoder(BuildContext build, const NumbersConfig& config)
      : ModalityEncoder(std::move(build)),
        size_(config.size),
        linear_(AddChild<LinearLayer>("linear", 1, size_, true, 0.1)) {}
  int64_t output_size() const override { return size_; }
  absl::StatusOr<Var> Forward(const Context& ctx,
                              const Tensor& input) const override {
    return linear_.Forward(ctx, Var{input.Reshape({input.numel(), 1})});
  }

 private:
  int64_t size_;
  LinearLayer& linear_;
};

TEST(LlavaProvider, AnEncoderOfTheUsersOwnType) {
  ModuleRegistry registry = BuiltinModules();
  registry.Add<NumbersConfig, NumbersEncoder>("numbers");
  LlavaConfig config = Tiny();
  config.projector.input_size = 12;
  auto provider = LlavaMimoProvider::Create(
      config, ModuleSpec("numbers", NumbersConfig()), {}, registry);
  ASSERT_TRUE(provider.ok()) << provider.status();
  Allocator allocator;
  const auto model =
      provider->Provide(nullptr, {.allocator = &allocator, .seed = 1});
  ASSERT_TRUE(model.ok()) << model.status();
  const Context ctx{.allocator = &allocator};
  Sample sample;
  sample.input_ids = {1, kImageToken, kImageToken, 4};
  sample.labels = sample.input_ids;
  sample.modalities["images"] = {{{2}, {1, 2}}};
  const auto inputs = (*model)->Prepare(ctx, Collate({sample}, 0));
  ASSERT_TRUE(inputs.ok()) << inputs.status();
  EXPECT_TRUE((*model)->Forward(ctx, *inputs).ok());
  // The projection's input is what LlavaConfig says it is.
  config.projector.input_size = 0;  // CLIP's hidden size, 12
  provider = LlavaMimoProvider::Create(
      config, ModuleSpec("numbers", NumbersConfig{.size = 7}), {}, registry);
  EXPECT_THAT(std::string(provider->Provide(nullptr, {.allocator = &allocator})
                              .status()
                              .message()),
              HasSubstr("input_size: 12, wanted 7, the encoder's output size"));
}

TEST(LlavaProvider, IsAMimoModelProvider) {
  const LlavaConfig config = Tiny();
  const MimoParallelismConfig parallelism{
      .deployment_mode = DeploymentMode::kHeterogeneous,
      .module_parallelisms = {
          {"images", {.data_parallel_size = 2}},
          {"language", {.data_parallel_size = 1, .rank_offset = 2}}}};
  auto provider = LlavaMimoProvider::Create(config, Clip(config), parallelism);
  ASSERT_TRUE(provider.ok()) << provider.status();
  RecordingWorld world(1, 3);
  Allocator allocator;
  MimoModelProvider& base = *provider;
  const auto model = base.Provide(&world, {.allocator = &allocator, .seed = 1});
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_THAT((*model)->role().ModalityModuleNames(), ElementsAre("images"));
  EXPECT_FALSE((*model)->role().HasLanguageModule());
}

// The `model:` section of a run and the provider have one table of defaults; an
// ordinary model's specs are the provider's.
TEST(LlavaProvider, TheModelSectionGivesTheSameSpecs) {
  const auto node = ParseYaml("{type: llava}", "run.yaml");
  const auto section = ReadModelSection(*node, BuiltinModules());
  ASSERT_TRUE(section.ok()) << section.status();
  const LlavaConfig config;
  const auto provider = LlavaMimoProvider::Create(config, Clip(config));
  ASSERT_TRUE(provider.ok()) << provider.status();
  EXPECT_TRUE(section->model == provider->model);
}

}  // namespace
}  // namespace mimo
