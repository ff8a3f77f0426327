#include "bench/step_flops.h"

#include "gtest/gtest.h"

namespace mimo {
namespace {

// The two steps of docs/perf/log.md; its tables' sums have attention backward
// at 2.5 times forward, where 2 is counted here: 0.52 and 0.55 TFLOP less.
TEST(StepFlops, OfThePerfLog) {
  LlavaConfig config;
  config.language.vocab_size = 32064;
  config.freeze_modality_encoders = {{"images", true}};
  config.language.num_layers = 8;
  EXPECT_NEAR(StepFlops(config, {.batch = 4, .seq = 2048, .labelled = 1471}),
              89.8e12 - 0.55e12, 0.1e12);
  config.language.num_layers = 32;
  config.freeze_language_model = true;
  EXPECT_NEAR(StepFlops(config, {.batch = 8, .seq = 704, .labelled = 127}),
              153.5e12 - 0.52e12, 0.1e12);
}

// By hand: each number is rows * weights * 2 * (1 + learns + before learns).
TEST(StepFlops, OfATinyModel) {
  LlavaConfig config;
  config.language = {.num_layers = 1,
                     .hidden_size = 8,
                     .ffn_hidden_size = 10,
                     .num_attention_heads = 2,
                     .num_query_groups = 1,
                     .vocab_size = 100};
  config.vision.num_layers = 3;
  config.vision.hidden_size = 4;
  config.vision.ffn_hidden_size = 6;
  config.vision.image_size = 4;
  config.vision.patch_size = 2;
  config.vision.feature_layer = -2;
  // B 2, S 6: 8 patches, 10 rows of two ViT layers, 8 of the projector, 12 of
  // the language model and 2 of its head.
  const double vit_layer = 10 * (4 * 16 + 2 * 24) * 2;
  const double vit_attention = 2 * 5 * 5 * 4 * 4;
  const double patch = 8 * (12 * 4) * 2;
  const double projector = 8 * (4 * 8 + 8 * 8) * 2;
  const double layer = 12 * (8 * 8 * 2 + 8 * 4 * 2 + 3 * 8 * 10) * 2;
  const double attention = 2 * 6 * 6 * 8 * 4 / 2;
  const double head = 2 * (8 * 100) * 2;
  const StepSize size = {.batch = 2, .seq = 6, .labelled = 1};
  EXPECT_EQ(StepFlops(config, size),
            2 * patch + 2 * 3 * (vit_layer + vit_attention) +
                3 * (projector + layer + attention + head));
  config.freeze_modality_encoders = {{"images", true}};
  config.freeze_language_model = true;
  EXPECT_EQ(StepFlops(config, size),
            patch + 2 * (vit_layer + vit_attention) + 2 * projector +
                8 * (8 * 8) * 2 +  // the input's gradient of its second layer
                2 * (layer + head) + 3 * attention);
  config.freeze_modality_projections = {{"images", true}};
  EXPECT_EQ(StepFlops(config, size), patch + 2 * (vit_layer + vit_attention) +
                                         projector + layer + head + attention);
}

}  // namespace
}  // namespace mimo
