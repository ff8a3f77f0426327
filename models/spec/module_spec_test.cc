#include "models/spec/module_spec.h"

#include <string>

#include "gtest/gtest.h"
#include "models/llava/llava.h"

namespace mimo {
namespace {

constexpr char kModel[] = R"(
type: mimo
language: {module: gpt, num_layers: 2, hidden_size: 32, vocab_size: 50,
           ffn_hidden_size: 64, num_attention_heads: 4, num_query_groups: 2}
modalities:
  images:
    encoders:
      second: {module: clip_vit, num_layers: 1, hidden_size: 16,
               num_attention_heads: 2, image_size: 8, patch_size: 4}
      first: {module: clip_vit, num_layers: 2, hidden_size: 16,
              num_attention_heads: 2, image_size: 8, patch_size: 4}
    input_projections: [{module: projector, input_size: 16, output_size: 32}]
    output_projections: [{module: projector, input_size: 32, output_size: 16}]
    decoders: {painter: {module: gpt, num_layers: 3}}
special_token_ids: {images: 49}
freeze_modality_encoders: {images: true}
)";

absl::StatusOr<MimoModelConfig> Read(const std::string& text) {
  const auto node = ParseYaml(text, "m.yaml");
  if (!node.ok()) return node.status();
  return ReadModelConfig(*node, BuiltinModules());
}

std::string Error(std::string text, const std::string& from,
                  const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  text.replace(at, from.size(), to);
  return std::string(Read(text).status().message());
}

TEST(ModelYaml, ReadsTypedSpecs) {
  const auto config = Read(kModel);
  ASSERT_TRUE(config.ok()) << config.status();
  const auto* language = config->language_model_spec.config.As<GptConfig>();
  ASSERT_NE(language, nullptr);
  EXPECT_EQ(language->groups(), 2);
  EXPECT_EQ(language->rotary_base, 10000);  // a default
  const ModalitySpec& images = config->modality_submodules_spec.at("images");
  ASSERT_EQ(images.encoders.size(), 2u);
  EXPECT_EQ(images.encoders[0].first, "second");  // the file's order
  EXPECT_EQ(images.encoders[1].second.config.As<ClipVitConfig>()->num_layers,
            2);
  EXPECT_EQ(images.decoders[0].second.config.As<GptConfig>()->num_layers, 3);
  EXPECT_EQ(
      images.output_projections[0].config.As<ProjectorConfig>()->output_size,
      16);
  EXPECT_EQ(config->special_token_ids.at("images"), 49);
  EXPECT_TRUE(config->freeze_modality_encoders.at("images"));
}

TEST(ModelYaml, WritesWhatItReads) {
  const auto config = Read(kModel);
  ASSERT_TRUE(config.ok()) << config.status();
  const std::string text = ToYaml(ToNode(*config));
  const auto again = Read(text);
  ASSERT_TRUE(again.ok()) << again.status() << "\n" << text;
  EXPECT_TRUE(*again == *config);
  EXPECT_EQ(ToYaml(ToNode(*again)), text);
}

TEST(ModelYaml, ErrorsNameFileAndKey) {
  EXPECT_EQ(Error(kModel, "num_query_groups", "num_query_group"),
            "m.yaml: language.num_query_group: unknown key, did you mean "
            "language.num_query_groups?");
  EXPECT_EQ(Error(kModel, "module: gpt", "module: bert"),
            "m.yaml: language: module: \"bert\", wanted one of clip_vit, gpt, "
            "projector");
  EXPECT_EQ(Error(kModel, "module: gpt, ", ""),
            "m.yaml: language: no module, wanted the name of one");
  EXPECT_EQ(Error(kModel, "num_query_groups: 2", "num_query_groups: 3"),
            "m.yaml: language.num_query_groups: 3, wanted a divisor of 4 "
            "num_attention_heads");
  EXPECT_EQ(Error(kModel, "num_query_groups: 2", "kv_channels: 320"),
            "m.yaml: language.kv_channels: head size 320, wanted at most 256");
  EXPECT_EQ(Error(kModel, "num_query_groups: 2",
                  "recompute: full, recompute_layers: 999"),
            "m.yaml: language.recompute_layers: 999, wanted 0 to num_layers");
  EXPECT_EQ(Error(kModel, "num_query_groups: 2", "recompute: some"),
            "m.yaml: language.recompute: \"some\", wanted off | selective | "
            "full");
  EXPECT_EQ(Error(kModel, "num_query_groups: 2", "logit_dtype: bfloat16"),
            "m.yaml: language.logit_dtype: bfloat16, wanted float32, or no "
            "such key: the run's dtype");
  EXPECT_EQ(Error(kModel, "modalities:", "modality:"),
            "m.yaml: modality: unknown key, did you mean modalities?");
  EXPECT_EQ(Error(kModel, "encoders:", "encoder:"),
            "m.yaml: modalities.images.encoder: unknown key, did you mean "
            "modalities.images.encoders?");
}

TEST(ModuleSpec, ComparesTypeAndConfig) {
  const ModuleSpec a("gpt", GptConfig{});
  ModuleSpec b = a;
  EXPECT_TRUE(a == b);
  b.config.As<GptConfig>()->num_layers = 3;
  EXPECT_FALSE(a == b);
  EXPECT_FALSE(a == ModuleSpec("other", GptConfig{}));
}

}  // namespace
}  // namespace mimo
