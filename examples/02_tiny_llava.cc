// A LLaVA of a few thousand weights, built from specs, learns to say which of
// four patterns it sees; then it is asked.
//
//   bazel run //examples:02_tiny_llava
#include <cstdio>
#include <vector>

#include "absl/log/check.h"
#include "kernels/random/philox.h"
#include "mimo/optim/adamw.h"
#include "models/generate/generate.h"
#include "models/llava/llava.h"
#include "models/mimo_model/mimo_stage.h"

namespace {

constexpr int32_t kBos = 0, kImage = 5;  // 1 to 4 name the patterns
constexpr int64_t kSize = 8;

// Stripes: down, across, both, none; with noise.
mimo::ModalityItem Picture(int pattern, mimo::PhiloxSequence& random) {
  mimo::ModalityItem item{{3, kSize, kSize}, {}};
  for (int64_t c = 0; c < 3; ++c) {
    for (int64_t y = 0; y < kSize; ++y) {
      for (int64_t x = 0; x < kSize; ++x) {
        const bool down = pattern != 1 && pattern != 3 && x % 2 == 0;
        const bool across = pattern != 0 && pattern != 3 && y % 2 == 0;
        item.values.push_back((down || across ? 1.0 : -1.0) +
                              0.5 * random.Normal());
      }
    }
  }
  return item;
}

mimo::Sample Ask(int pattern, mimo::PhiloxSequence& random) {
  mimo::Sample sample;
  sample.input_ids = {kBos, kImage, kImage, kImage, kImage, 1 + pattern};
  sample.labels.assign(5, mimo::kIgnoreLabel);
  sample.labels.push_back(1 + pattern);
  sample.modalities["images"] = {Picture(pattern, random)};
  return sample;
}

}  // namespace

int main() {
  mimo::LlavaConfig config;
  config.language = {.num_layers = 1,
                     .hidden_size = 32,
                     .ffn_hidden_size = 64,
                     .num_attention_heads = 2,
                     .vocab_size = 6,
                     .max_sequence_length = 16,
                     .init_std = 0.1};
  config.vision.num_layers = 1;
  config.vision.hidden_size = 32;
  config.vision.ffn_hidden_size = 64;
  config.vision.num_attention_heads = 2;
  config.vision.image_size = kSize;
  config.vision.patch_size = 4;
  config.vision.feature_layer = -1;
  config.vision.init_std = 0.1;
  config.projector.init_std = 0.1;
  config.special_token_ids = {{"images", kImage}};

  mimo::Allocator allocator;
  auto model = mimo::MimoModel::Build(mimo::LlavaModelConfig(config),
                                      mimo::BuiltinModules(),
                                      {.allocator = &allocator, .seed = 1});
  CHECK_OK(model.status());
  mimo::MimoStage stage(**model, allocator);
  mimo::OptimizerConfig adam;
  mimo::AdamW optimizer(adam, stage.Parameters(), allocator);

  mimo::PhiloxSequence random(3, 0);
  for (int step = 0; step <= 150; ++step) {
    std::vector<mimo::Sample> samples;
    for (int i = 0; i < 16; ++i) {
      samples.push_back(Ask(random.Below(4), random));
    }
    const auto loss =
        stage.ForwardBackward({mimo::Collate(samples, kBos)}, 1.0 / 16);
    CHECK_OK(loss.status());
    optimizer.Step(/*lr=*/3e-3);
    for (mimo::Parameter* p : stage.Parameters()) p->ForgetGrad();
    if (step % 50 == 0) std::printf("step %3d loss %.4f\n", step, *loss / 16);
  }

  const mimo::Context ctx{.allocator = &allocator};
  int right = 0;
  for (int i = 0; i < 40; ++i) {
    mimo::Sample question = Ask(i % 4, random);
    question.input_ids.pop_back();
    question.labels.pop_back();
    const mimo::MicroBatch batch = mimo::Collate({question}, kBos);
    const auto answer =
        mimo::Generate(ctx, **model, question.input_ids,
                       (*model)->InputsOf(ctx, batch), {.max_new_tokens = 1});
    CHECK_OK(answer.status());
    right += (*answer)[0] == 1 + i % 4;
  }
  std::printf("%d of 40 answers right\n", right);
  return right >= 36 ? 0 : 1;
}
