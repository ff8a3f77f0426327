#include "models/mimo_model/mimo_model.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/parallel.h"
#include "models/mimo_model/mimo_stage.h"
#include "models/mimo_model/tiny_llava.h"

namespace mimo {
namespace {

TEST_F(MimoModelTest, GradientsMatchCentralDifferences) {
  for (bool tied : {false, true}) {
    LlavaConfig config = Tiny();
    config.language.tie_word_embeddings = tied;
    config.vision.feature_layer = tied ? -1 : -2;
    config.vision.feature_select_strategy =
        tied ? FeatureSelect::kFull : FeatureSelect::kDefault;
    auto model = Build(config, DType::kFloat64);
    MimoStage stage(*model, allocator_);
    const MicroBatch batch = TwoSamples(tied ? 5 : 4);
    const double scale = 1.0 / batch.LabelledTokens();
    ASSERT_TRUE(stage.ForwardBackward({batch}, scale).ok());
    int checked = 0;
    for (Parameter* p : model->Parameters()) {
      if (p->frozen) continue;
      const auto values = p->data.span<double>();
      const auto grad = p->Grad().span<double>();
      const int64_t step = std::max<int64_t>(1, values.size() / 3);
      for (size_t i = 0; i < values.size(); i += step) {
        const double kept = values[i], h = 1e-5;
        values[i] = kept + h;
        const double up = *stage.Loss({batch});
        values[i] = kept - h;
        const double down = *stage.Loss({batch});
        values[i] = kept;
        // h^2 truncation and 1e-16/h cancellation leave about 1e-9.
        EXPECT_NEAR(grad[i], scale * (up - down) / (2 * h), 1e-8)
            << p->name << "[" << i << "]";
        ++checked;
      }
    }
    EXPECT_GT(checked, 100);
  }
}

TEST_F(MimoModelTest, Float32FollowsFloat64) {
  auto model = Build(Tiny());
  auto oracle = Build(Tiny(), DType::kFloat64);
  std::vector<Parameter*> from = model->Parameters();
  std::vector<Parameter*> to = oracle->Parameters();
  for (size_t i = 0; i < from.size(); ++i) {
    const auto values = from[i]->data.span<float>();
    std::copy(values.begin(), values.end(), to[i]->data.span<double>().begin());
  }
  const MicroBatch batch = TwoSamples();
  MimoStage stage(*model, allocator_), oracle_stage(*oracle, allocator_);
  const double loss = *stage.ForwardBackward({batch}, 1);
  const double oracle_loss = *oracle_stage.ForwardBackward({batch}, 1);
  EXPECT_NEAR(loss / oracle_loss, 1, 1e-6);  // float32 rounds to 6e-8
  for (size_t i = 0; i < from.size(); ++i) {
    if (from[i]->frozen) continue;
    const auto got = from[i]->Grad().span<float>();
    const auto want = to[i]->Grad().span<double>();
    double error = 0, norm = 0;
    for (size_t j = 0; j < want.size(); ++j) {
      error += std::pow(got[j] - want[j], 2);
      norm += want[j] * want[j];
    }
    EXPECT_LT(std::sqrt(error), 2e-5 * std::sqrt(norm) + 1e-7) << from[i]->name;
  }
}

TEST_F(MimoModelTest, RecomputingActivationsChangesNoBit) {
  LlavaConfig config = Tiny();
  std::vector<std::vector<std::vector<float>>> grads;
  for (Recompute recompute :
       {Recompute::kOff, Recompute::kSelective, Recompute::kFull}) {
    config.language.recompute = recompute;
    config.vision.recompute = recompute;
    auto model = Build(config);
    MimoStage stage(*model, allocator_);
    ASSERT_TRUE(stage.ForwardBackward({TwoSamples()}, 0.5).ok());
    grads.emplace_back();
    for (Parameter* p : model->Parameters()) {
      if (p->frozen) continue;
      const auto grad = p->Grad().span<float>();
      grads.back().emplace_back(grad.begin(), grad.end());
    }
  }
  EXPECT_EQ(grads[0], grads[1]);
  EXPECT_EQ(grads[0], grads[2]);
}

TEST_F(MimoModelTest, ThreadsChangeNoBit) {
  std::vector<double> losses;
  for (int threads : {1, 2, 3}) {
    SetNumThreads(threads);
    auto model = Build(Tiny());
    MimoStage stage(*model, allocator_);
    losses.push_back(*stage.ForwardBackward({TwoSamples()}, 1));
    for (Parameter* p : model->Parameters()) {
      if (!p->frozen) losses.push_back(p->Grad().span<float>()[0]);
    }
  }
  const size_t n = losses.size() / 3;
  for (size_t i = 0; i < n; ++i) {
    EXPECT_EQ(losses[i], losses[n + i]);
    EXPECT_EQ(losses[i], losses[2 * n + i]);
  }
}

TEST_F(MimoModelTest, PaddingChangesNothing) {
  auto model = Build(Tiny(), DType::kFloat64);
  MimoStage stage(*model, allocator_);
  const MicroBatch both = TwoSamples();
  double separate = 0;
  for (int b = 0; b < 2; ++b) {
    MicroBatch one;
    one.batch = 1;
    one.seq = both.lengths[b];
    const auto begin = both.input_ids.begin() + b * both.seq;
    one.input_ids.assign(begin, begin + one.seq);
    const auto labels = both.labels.begin() + b * both.seq;
    one.labels.assign(labels, labels + one.seq);
    one.lengths = {both.lengths[b]};
    auto& items = one.modalities["images"];
    items.shape = {1, 3, 6, 6};
    const auto pixels =
        both.modalities.at("images").values.begin() + b * 3 * 6 * 6;
    items.values.assign(pixels, pixels + 3 * 6 * 6);
    separate += *stage.Loss({one});
  }
  EXPECT_NEAR(separate / *stage.Loss({both}), 1, 1e-12);
}

TEST_F(MimoModelTest, FrozenTowersRecordNothingAndKeepNoGradient) {
  LlavaConfig config = Tiny();
  config.freeze_language_model = true;
  config.freeze_modality_encoders = {{"images", true}};
  auto model = Build(config);
  for (Parameter* p : model->Parameters()) {
    EXPECT_EQ(p->frozen, p->name.find("input_projections") == std::string::npos)
        << p->name;
  }
  Tape tape;
  const Context ctx{.allocator = &allocator_, .tape = &tape};
  const MicroBatch batch = TwoSamples();
  const auto inputs = model->Prepare(ctx, batch);
  ASSERT_TRUE(inputs.ok()) << inputs.status();
  ASSERT_TRUE(model->ForwardModalities(ctx, *inputs).ok());
  EXPECT_EQ(tape.nodes(), 2);  // the projector's two linear layers
}

TEST_F(MimoModelTest, TextOnlyBatches) {
  auto model = Build(Tiny());
  MimoStage stage(*model, allocator_);
  Sample sample;
  sample.input_ids = {1, 5, 7, 2};
  sample.labels = sample.input_ids;
  const auto loss = stage.ForwardBackward({Collate({sample}, 0)}, 1);
  ASSERT_TRUE(loss.ok()) << loss.status();
  EXPECT_NEAR(*loss / 3, std::log(32), 1.5);
}

}  // namespace
}  // namespace mimo
