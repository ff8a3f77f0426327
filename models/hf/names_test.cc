#include "models/hf/names.h"

#include <map>
#include <string>

#include "gtest/gtest.h"
#include "models/llava/llava.h"
#include "models/mimo_model/mimo_model.h"

namespace mimo {
namespace {

TEST(HfNames, Canonical) {
  const std::pair<const char*, const char*> cases[] = {
      {"lm_head.weight", "language_model.lm_head.weight"},
      {"language_model.lm_head.weight", "language_model.lm_head.weight"},
      {"language_model.model.norm.weight", "language_model.model.norm.weight"},
      {"model.language_model.norm.weight", "language_model.model.norm.weight"},
      {"language_model.norm.weight", "language_model.model.norm.weight"},
      {"vision_tower.vision_model.encoder.x", "vision_tower.encoder.x"},
      {"model.vision_tower.vision_model.a", "vision_tower.a"},
      {"model.vision_tower.a", "vision_tower.a"},
      {"model.multi_modal_projector.linear_1.bias",
       "multi_modal_projector.linear_1.bias"},
      {"model.norm.weight", "model.norm.weight"},
  };
  for (const auto& [name, canonical] : cases) {
    EXPECT_EQ(CanonicalHfName(name), canonical);
    EXPECT_EQ(CanonicalHfName(canonical), canonical);
  }
}

// The table and the model that is built name the same parameters.
TEST(HfNames, AreTheModels) {
  LlavaConfig config;
  config.language = {.num_layers = 2,
                     .hidden_size = 24,
                     .ffn_hidden_size = 20,
                     .num_attention_heads = 4,
                     .num_query_groups = 2,
                     .kv_channels = 10,
                     .vocab_size = 31};
  config.vision.num_layers = 3;
  config.vision.hidden_size = 12;
  config.vision.ffn_hidden_size = 14;
  config.vision.num_attention_heads = 2;
  config.vision.num_channels = 2;
  config.vision.image_size = 9;
  config.vision.patch_size = 3;
  config.special_token_ids["images"] = 30;
  const ModuleRegistry registry = BuiltinModules();
  for (int variant = 0; variant < 5; ++variant) {
    LlavaConfig c = config;
    c.language.tie_word_embeddings = variant == 1;
    c.projector.bias = variant != 2;
    if (variant == 3) c.projector.type = ProjectorType::kAffine;
    if (variant == 4) c.projector.ffn_hidden_size = 17;
    Allocator allocator;
    const auto model =
        MimoModel::Build(LlavaModelConfig(c), registry,
                         {.allocator = &allocator, .dtype = DType::kFloat32});
    ASSERT_TRUE(model.ok()) << model.status();
    std::map<std::string, Shape> built, listed;
    for (const Parameter* p : (*model)->Parameters()) {
      built[p->name] = p->data.shape();
    }
    for (const HfParameter& row : HfParameters(c)) {
      listed[row.name] = row.shape;
      // The parts fill it exactly.
      int64_t elements = 0;
      for (const HfTensor& tensor : row.tensors) {
        EXPECT_EQ(tensor.row * (NumElements(row.shape) / row.shape[0]),
                  elements);
        elements += NumElements(tensor.shape);
      }
      EXPECT_EQ(elements, NumElements(row.shape)) << row.name;
    }
    EXPECT_EQ(built, listed) << "variant " << variant;
  }
}

}  // namespace
}  // namespace mimo
