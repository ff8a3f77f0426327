// A tiny LLaVA and a batch for it, for the tests of models.
#ifndef MIMO_MODELS_MIMO_MODEL_TINY_LLAVA_H_
#define MIMO_MODELS_MIMO_MODEL_TINY_LLAVA_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/random/philox.h"
#include "models/llava/llava.h"
#include "models/mimo_model/mimo_model.h"

namespace mimo {

inline constexpr int32_t kImageToken = 31;

inline LlavaConfig Tiny() {
  LlavaConfig config;
  config.language = {.num_layers = 2,
                     .hidden_size = 24,
                     .ffn_hidden_size = 40,
                     .num_attention_heads = 4,
                     .num_query_groups = 2,
                     .vocab_size = 32,
                     .max_sequence_length = 64,
                     .init_std = 0.2};
  config.vision = {.num_layers = 3,
                   .hidden_size = 12,
                   .ffn_hidden_size = 20,
                   .num_attention_heads = 3,
                   .image_size = 6,
                   .patch_size = 3,
                   .init_std = 0.2,
                   .position_embedding_std = 0.5};
  config.projector.init_std = 0.2;
  config.special_token_ids = {{"images", kImageToken}};
  return config;
}

// Two samples: one image in each, a different place, a padded tail.
inline MicroBatch TwoSamples(int64_t tokens_an_image = 4) {
  MicroBatch batch;
  std::vector<Sample> samples(2);
  PhiloxSequence random(1, 2);
  for (int b = 0; b < 2; ++b) {
    Sample& sample = samples[b];
    for (int i = 0; i < 2 + b; ++i) {
      sample.input_ids.push_back(random.Below(kImageToken));
    }
    sample.input_ids.insert(sample.input_ids.end(), tokens_an_image,
                            kImageToken);
    for (int i = 0; i < 5 - 3 * b; ++i) {
      sample.input_ids.push_back(random.Below(kImageToken));
    }
    sample.labels = sample.input_ids;
    for (int32_t& label : sample.labels) {
      if (label == kImageToken) label = kIgnoreLabel;
    }
    ModalityItem image{{3, 6, 6}, std::vector<float>(3 * 6 * 6)};
    for (float& x : image.values) x = random.Normal();
    sample.modalities["images"] = {image};
  }
  return Collate(samples, /*pad_id=*/0);
}

class MimoModelTest : public ::testing::Test {
 protected:
  std::unique_ptr<MimoModel> Build(const LlavaConfig& config,
                                   DType dtype = DType::kFloat32) {
    auto model = MimoModel::Build(
        LlavaModelConfig(config), BuiltinModules(),
        {.allocator = &allocator_, .dtype = dtype, .seed = 11});
    EXPECT_TRUE(model.ok()) << model.status();
    return *std::move(model);
  }
  std::string BuildError(const MimoModelConfig& config,
                         const ModuleRegistry& registry = BuiltinModules()) {
    auto model = MimoModel::Build(config, registry,
                                  {.allocator = &allocator_, .seed = 11});
    return model.ok() ? "" : std::string(model.status().message());
  }
  std::string ForwardError(const MimoModel& model, const MicroBatch& batch) {
    const Context ctx{.allocator = &allocator_};
    const auto inputs = model.Prepare(ctx, batch);
    if (!inputs.ok()) return std::string(inputs.status().message());
    const auto out = model.Forward(ctx, *inputs);
    return out.ok() ? "" : std::string(out.status().message());
  }
  Allocator allocator_;
};

}  // namespace mimo

#endif  // MIMO_MODELS_MIMO_MODEL_TINY_LLAVA_H_
