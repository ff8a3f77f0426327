#include "models/mimo_model/mimo_model.h"

#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/parallel.h"
#include "kernels/random/philox.h"
#include "models/generate/generate.h"
#include "models/llava/llava.h"
#include "models/mimo_model/mimo_stage.h"

namespace mimo {
namespace {

using ::testing::HasSubstr;

constexpr int32_t kImageToken = 31;

LlavaConfig Tiny() {
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
MicroBatch TwoSamples(int64_t tokens_an_image = 4) {
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
    auto out = model.Forward(ctx, batch.input_ids, batch.batch, batch.seq,
                             model.InputsOf(ctx, batch));
    return out.ok() ? "" : std::string(out.status().message());
  }
  Allocator allocator_;
};

// The gradient of the whole model, every parameter, against central differences
// of its own float64 loss.
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
    ASSERT_TRUE(stage.ForwardBackward(batch, scale).ok());
    int checked = 0;
    for (Parameter* p : model->Parameters()) {
      if (p->frozen) continue;
      const auto values = p->data.span<double>();
      const auto grad = p->Grad().span<double>();
      const int64_t step = std::max<int64_t>(1, values.size() / 3);
      for (size_t i = 0; i < values.size(); i += step) {
        const double kept = values[i], h = 1e-5;
        values[i] = kept + h;
        const double up = *stage.Loss(batch);
        values[i] = kept - h;
        const double down = *stage.Loss(batch);
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
  const double loss = *stage.ForwardBackward(batch, 1);
  const double oracle_loss = *oracle_stage.ForwardBackward(batch, 1);
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
  std::vector<std::vector<float>> grads[2];
  for (bool recompute : {false, true}) {
    config.language.recompute_activations = recompute;
    auto model = Build(config);
    MimoStage stage(*model, allocator_);
    ASSERT_TRUE(stage.ForwardBackward(TwoSamples(), 0.5).ok());
    for (Parameter* p : model->Parameters()) {
      if (p->frozen) continue;
      const auto grad = p->Grad().span<float>();
      grads[recompute].emplace_back(grad.begin(), grad.end());
    }
  }
  EXPECT_EQ(grads[0], grads[1]);
}

TEST_F(MimoModelTest, ThreadsChangeNoBit) {
  std::vector<double> losses;
  for (int threads : {1, 2, 3}) {
    SetNumThreads(threads);
    auto model = Build(Tiny());
    MimoStage stage(*model, allocator_);
    losses.push_back(*stage.ForwardBackward(TwoSamples(), 1));
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
    separate += *stage.Loss(one);
  }
  EXPECT_NEAR(separate / *stage.Loss(both), 1, 1e-12);
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
  ASSERT_TRUE(model
                  ->ModalityFeatures(ctx, "images",
                                     model->InputsOf(ctx, batch)["images"])
                  .ok());
  EXPECT_EQ(tape.nodes(), 2);  // the projector's two linear layers
}

TEST_F(MimoModelTest, TextOnlyBatches) {
  auto model = Build(Tiny());
  MimoStage stage(*model, allocator_);
  Sample sample;
  sample.input_ids = {1, 5, 7, 2};
  sample.labels = sample.input_ids;
  const auto loss = stage.ForwardBackward(Collate({sample}, 0), 1);
  ASSERT_TRUE(loss.ok()) << loss.status();
  EXPECT_NEAR(*loss / 3, std::log(32), 1.5);
}

TEST_F(MimoModelTest, CachedGenerationIsTheUncachedArgmax) {
  auto model = Build(Tiny());
  const Context ctx{.allocator = &allocator_};
  const MicroBatch batch = TwoSamples();
  std::vector<int32_t> prompt(batch.input_ids.begin(),
                              batch.input_ids.begin() + batch.lengths[0]);
  ModalityInputs inputs = model->InputsOf(ctx, batch);
  inputs["images"]["clip_encoder"] =
      inputs["images"]["clip_encoder"].Rows(0, 1);
  const auto generated =
      Generate(ctx, *model, prompt, inputs, {.max_new_tokens = 8});
  ASSERT_TRUE(generated.ok()) << generated.status();
  ASSERT_EQ(generated->size(), 8u);
  for (int32_t token : *generated) {
    if (token == kImageToken) GTEST_SKIP() << "drew the image token";
    const auto hidden = model->Forward(ctx, prompt, 1, prompt.size(), inputs);
    ASSERT_TRUE(hidden.ok()) << hidden.status();
    const Tensor logits = model->language_model().Logits(
        ctx, hidden->value.Rows(prompt.size() - 1, prompt.size()));
    const auto l = logits.span<float>();
    EXPECT_EQ(token, std::max_element(l.begin(), l.end()) - l.begin());
    prompt.push_back(token);
  }
}

TEST_F(MimoModelTest, GenerationStopsAtEosAndAtTheLimit) {
  auto model = Build(Tiny());
  const Context ctx{.allocator = &allocator_};
  const auto all = Generate(ctx, *model, {1, 2}, {}, {.max_new_tokens = 1000});
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(all->size(), 63u);  // 64 positions, 2 of the prompt, one past
  const auto until = Generate(ctx, *model, {1, 2}, {},
                              {.max_new_tokens = 1000, .eos_id = (*all)[3]});
  ASSERT_TRUE(until.ok());
  EXPECT_LE(until->size(), 3u);
}

TEST_F(MimoModelTest, SamplingFollowsItsSeedAndItsCuts) {
  auto model = Build(Tiny());
  const Context ctx{.allocator = &allocator_};
  GenerateOptions options{.max_new_tokens = 20, .temperature = 2, .seed = 3};
  const auto a = *Generate(ctx, *model, {1, 2}, {}, options);
  EXPECT_EQ(a, *Generate(ctx, *model, {1, 2}, {}, options));
  options.seed = 4;
  EXPECT_NE(a, *Generate(ctx, *model, {1, 2}, {}, options));
  const auto greedy =
      *Generate(ctx, *model, {1, 2}, {}, {.max_new_tokens = 20});
  options.top_k = 1;
  EXPECT_EQ(greedy, *Generate(ctx, *model, {1, 2}, {}, options));
  options.top_k = 0;
  options.top_p = 1e-9;
  EXPECT_EQ(greedy, *Generate(ctx, *model, {1, 2}, {}, options));
  options.top_p = 0;
  EXPECT_EQ(Generate(ctx, *model, {1, 2}, {}, options).status().message(),
            "top_p: 0, wanted in (0, 1]");
}

TEST_F(MimoModelTest, BatchesThatDoNotFitAreErrors) {
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
            "Number of images tokens (8) does not match number of images "
            "embeddings (0)");
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

TEST_F(MimoModelTest, AlignmentErrors) {
  auto model = Build(Tiny());
  const Context ctx{.allocator = &allocator_};
  Parameter& table = model->language_model().embedding();
  auto message = [&](const TokenLayout& layout,
                     std::vector<std::pair<std::string, Var>> rows) {
    return std::string(AlignEmbeddingsByTokenPositions(ctx, layout, table, rows)
                           .status()
                           .message());
  };
  EXPECT_EQ(message({}, {}), "No modality embeddings provided");
  const TokenLayout layout =
      *LayOutTokens({1, kImageToken, 2}, {{"images", kImageToken}}, 32);
  const Var one{Tensor::Zeros(allocator_, {1, 24}, DType::kFloat32)};
  const Var two{Tensor::Zeros(allocator_, {2, 24}, DType::kFloat32)};
  EXPECT_EQ(message(layout, {{"sounds", one}}),
            "No special token ID defined for modality sounds");
  EXPECT_EQ(message(layout, {{"images", two}}),
            "Number of images tokens (1) does not match number of images "
            "embeddings (2)");
  EXPECT_EQ(message(layout, {{"images", one}}), "");
}

TEST_F(MimoModelTest, AlignmentPutsRowsInOrder) {
  // Two modalities, items of different length, row-major over the batch.
  auto model = Build(Tiny());
  const Context ctx{.allocator = &allocator_};
  Parameter& table = model->language_model().embedding();
  const std::vector<int32_t> ids = {30, 1, 31, 31, 2, 31, 30, 30};
  const TokenLayout layout =
      *LayOutTokens(ids, {{"images", 31}, {"sounds", 30}}, 32);
  auto rows = [&](int64_t n, float base) {
    Tensor t(allocator_, {n, 24}, DType::kFloat32);
    for (int64_t i = 0; i < t.numel(); ++i) t.span<float>()[i] = base + i / 24;
    return Var{t};
  };
  const auto out = AlignEmbeddingsByTokenPositions(
      ctx, layout, table, {{"images", rows(3, 100)}, {"sounds", rows(3, 200)}});
  ASSERT_TRUE(out.ok()) << out.status();
  const auto got = out->value.span<float>();
  const std::vector<float> first = {200, 0, 100, 101, 0, 102, 201, 202};
  for (size_t t = 0; t < ids.size(); ++t) {
    const float want =
        ids[t] >= 30 ? first[t] : table.data.span<float>()[ids[t] * 24];
    EXPECT_EQ(got[t * 24], want) << t;
  }
}

TEST_F(MimoModelTest, SubmoduleErrors) {
  auto submodule = ModalitySubmodule::Build(
      LlavaModelConfig(Tiny()).modality_submodules_spec.at("images"),
      BuiltinModules(), {.allocator = &allocator_, .path = "images"});
  ASSERT_TRUE(submodule.ok()) << submodule.status();
  const Context ctx{.allocator = &allocator_};
  EXPECT_TRUE((*submodule)->Encode(ctx, {})->empty());
  EXPECT_EQ((*submodule)->Combine(ctx, {}).status().message(),
            "images: Cannot combine empty list of embeddings");
  EXPECT_EQ((*submodule)->Encode(ctx, {{"other", Tensor()}}).status().message(),
            "images: No inputs found for encoder 'clip_encoder'");
}

TEST_F(MimoModelTest, TwoEncodersAreJoinedAlongTheTokens) {
  MimoModelConfig config = LlavaModelConfig(Tiny());
  auto& images = config.modality_submodules_spec["images"];
  images.encoders.emplace_back("second", images.encoders[0].second);
  auto model = MimoModel::Build(config, BuiltinModules(),
                                {.allocator = &allocator_, .seed = 1});
  ASSERT_TRUE(model.ok()) << model.status();
  Tape tape;
  const Context ctx{.allocator = &allocator_, .tape = &tape};
  const MicroBatch batch = TwoSamples();
  const auto rows = (*model)->ModalityFeatures(
      ctx, "images", (*model)->InputsOf(ctx, batch)["images"]);
  ASSERT_TRUE(rows.ok()) << rows.status();
  EXPECT_EQ(rows->value.shape(), Shape({2 * 2 * 4, 24}));
  tape.Backward(ctx, {{rows->slot, rows->value.Clone(allocator_)}});
  for (Parameter* p : (*model)->Parameters()) {
    if (p->name.find("layers.0.mlp.fc1.weight") == std::string::npos) continue;
    EXPECT_EQ(p->written, p->name.find("encoders") != std::string::npos);
  }
}

TEST_F(MimoModelTest, SpecErrorsNameTheModule) {
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

TEST_F(MimoModelTest, SpecsAreDeepCopied) {
  MimoModelConfig config = LlavaModelConfig(Tiny());
  const MimoModelConfig copy = config;
  EXPECT_TRUE(copy == config);
  config.language_model_spec.config.As<GptConfig>()->num_layers = 7;
  EXPECT_FALSE(copy == config);
  EXPECT_EQ(copy.language_model_spec.config.As<GptConfig>()->num_layers, 2);
  EXPECT_EQ(config.language_model_spec.config.As<ClipVitConfig>(), nullptr);
}

// A user's own encoder: each item of two numbers is one token.
struct PairConfig {
  int64_t size = 12;
  template <typename V>
  void Fields(V& v) {
    v("size", size);
  }
};
class PairEncoder : public ModalityEncoder {
 public:
  PairEncoder(BuildContext build, const PairConfig& config)
      : ModalityEncoder(std::move(build)),
        linear_(AddChild<LinearLayer>("linear", 2, config.size, true, 0.1)) {}
  int64_t output_size() const override { return 12; }
  absl::StatusOr<Var> Forward(const Context& ctx,
                              const Tensor& input) const override {
    return linear_.Forward(ctx, Var{input});
  }

 private:
  LinearLayer& linear_;
};

TEST_F(MimoModelTest, ModulesOfTheUsersOwn) {
  ModuleRegistry registry = BuiltinModules();
  registry.Add<PairConfig, PairEncoder>("pair");
  MimoModelConfig config = LlavaModelConfig(Tiny());
  config.modality_submodules_spec["images"].encoders[0].second =
      ModuleSpec("pair", PairConfig{});
  auto model =
      MimoModel::Build(config, registry, {.allocator = &allocator_, .seed = 1});
  ASSERT_TRUE(model.ok()) << model.status();
  MimoStage stage(**model, allocator_);
  Sample sample;
  sample.input_ids = {1, kImageToken, kImageToken, 4};
  sample.labels = {1, kIgnoreLabel, kIgnoreLabel, 4};
  sample.modalities["images"] = {{{2}, {1, 2}}, {{2}, {3, 4}}};
  const auto loss = stage.ForwardBackward(Collate({sample}, 0), 1);
  ASSERT_TRUE(loss.ok()) << loss.status();
  // Outputs of the wrong width are named.
  config.modality_submodules_spec["images"]
      .encoders[0]
      .second.config.As<PairConfig>()
      ->size = 5;
  model =
      MimoModel::Build(config, registry, {.allocator = &allocator_, .seed = 1});
  ASSERT_TRUE(model.ok());
  MimoStage bad(**model, allocator_);
  EXPECT_THAT(std::string(bad.Loss(Collate({sample}, 0)).status().message()),
              HasSubstr("clip_encoder: output [2, 5], wanted 12 columns"));
}

}  // namespace
}  // namespace mimo
