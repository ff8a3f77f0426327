// A modality's encoders: several, and a user's own.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "models/mimo_model/mimo_stage.h"
#include "models/mimo_model/tiny_llava.h"

namespace mimo {
namespace {

using ::testing::HasSubstr;
using EncodersTest = MimoModelTest;

TEST_F(EncodersTest, TwoEncodersAreJoinedItemByItem) {
  MimoModelConfig config = LlavaModelConfig(Tiny());
  auto& images = config.modality_submodules_spec["images"];
  images.encoders.emplace_back("second", images.encoders[0].second);
  auto model = MimoModel::Build(config, BuiltinModules(),
                                {.allocator = &allocator_, .seed = 1});
  ASSERT_TRUE(model.ok()) << model.status();
  Tape tape;
  const Context ctx{.allocator = &allocator_, .tape = &tape};
  const auto inputs = (*model)->Prepare(ctx, TwoSamples(8));
  ASSERT_TRUE(inputs.ok()) << inputs.status();
  const auto outputs = (*model)->ForwardModalities(ctx, *inputs);
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  const Var& rows = outputs->at("images");
  EXPECT_EQ(rows.value.shape(), Shape({2 * 2 * 4, 24}));
  tape.Backward(ctx, {{rows.slot, rows.value.Clone(allocator_)}});
  for (Parameter* p : (*model)->Parameters()) {
    if (p->name.find("layers.0.mlp.fc1.weight") == std::string::npos) continue;
    EXPECT_EQ(p->written, p->name.find("encoders") != std::string::npos);
  }
}

// Encoders of different sizes, each with its projection.
TEST_F(EncodersTest, AProjectionForEachEncoder) {
  MimoModelConfig config = LlavaModelConfig(Tiny());
  auto& images = config.modality_submodules_spec["images"];
  ModuleSpec wide = images.encoders[0].second;
  wide.config.As<ClipVitConfig>()->hidden_size = 18;
  images.encoders.emplace_back("wide", wide);
  ModuleSpec projection = images.input_projections[0];
  projection.config.As<ProjectorConfig>()->input_size = 18;
  images.input_projections.push_back(projection);
  const BuildContext build{.allocator = &allocator_, .seed = 1};
  auto model = MimoModel::Build(config, BuiltinModules(), build);
  ASSERT_TRUE(model.ok()) << model.status();
  Tape tape;
  const Context ctx{.allocator = &allocator_, .tape = &tape};
  const auto inputs = (*model)->Prepare(ctx, TwoSamples(8));
  ASSERT_TRUE(inputs.ok()) << inputs.status();
  const auto rows = (*model)->ForwardModalities(ctx, *inputs);
  ASSERT_TRUE(rows.ok()) << rows.status();
  const Var& joined = rows->at("images");
  EXPECT_EQ(joined.value.shape(), Shape({2 * 2 * 4, 24}));
  // Each image has the first encoder's four rows, those of the model of it
  // alone, then the second's.
  const auto one = Build(Tiny());
  for (Parameter* to : one->Parameters()) {
    for (Parameter* from : (*model)->Parameters())
      if (from->name == to->name) to->data.CopyFrom(from->data);
  }
  const auto first =
      one->ForwardModalities(ctx, *one->Prepare(ctx, TwoSamples()));
  ASSERT_TRUE(first.ok()) << first.status();
  for (int64_t image : {0, 1}) {
    const Tensor rows = joined.value.Rows(8 * image, 8 * image + 4);
    EXPECT_TRUE(std::ranges::equal(
        first->at("images").value.Rows(4 * image, 4 * image + 4).span<float>(),
        rows.span<float>()));
  }
  tape.Backward(ctx, {{joined.slot, joined.value.Clone(allocator_)}});
  for (Parameter* p : (*model)->Parameters()) {
    if (p->name.find("input_projections") == std::string::npos) continue;
    EXPECT_TRUE(p->written) << p->name;
  }
  // Frozen together, and encoded ahead each.
  config.freeze_modality_encoders["images"] = true;
  model = MimoModel::Build(config, BuiltinModules(), build);
  ASSERT_TRUE(model.ok()) << model.status();
  auto ahead = *(*model)->Prepare(ctx, TwoSamples(8));
  ASSERT_TRUE((*model)->EncodeFrozen(ctx, "images", ahead).ok());
  EXPECT_EQ(ahead.features.at("images").size(), 2u);
  const auto same = (*model)->ForwardModalities(ctx, ahead);
  ASSERT_TRUE(same.ok()) << same.status();
  EXPECT_TRUE(std::ranges::equal(same->at("images").value.span<float>(),
                                 joined.value.span<float>()));

  images.input_projections.push_back(projection);
  EXPECT_EQ(BuildError(config),
            "modality_submodules.images: 3 input projections, wanted at most "
            "one, or one for each of 2 encoders");
  images.input_projections.pop_back();
  images.input_projections[1].config.As<ProjectorConfig>()->output_size = 20;
  EXPECT_EQ(BuildError(config),
            "modality_submodules.images.input_projections.1: output_size: 20, "
            "wanted 24 as of the first projection");
}

// A user's own encoder: each two numbers are one token.
struct PairConfig {
  int64_t size = 12;
  bool flat = false;  // of no shape that an encoder may give
  template <typename V>
  void Fields(V& v) {
    v("size", size);
    v("flat", flat);
  }
};
class PairEncoder : public ModalityEncoder {
 public:
  PairEncoder(BuildContext build, const PairConfig& config)
      : ModalityEncoder(std::move(build)),
        flat_(config.flat),
        linear_(AddChild<LinearLayer>("linear", 2, config.size, true, 0.1)) {}
  int64_t output_size() const override { return 12; }
  absl::StatusOr<Var> Forward(const Context& ctx,
                              const Tensor& input) const override {
    Var out = linear_.Forward(ctx, Var{input.Reshape({input.numel() / 2, 2})});
    if (flat_) out.value = out.value.Reshape({out.value.numel()});
    return out;
  }

 private:
  const bool flat_;
  LinearLayer& linear_;
};

TEST_F(EncodersTest, ModulesOfTheUsersOwn) {
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
  const auto loss = stage.ForwardBackward({Collate({sample}, 0)}, 1);
  ASSERT_TRUE(loss.ok()) << loss.status();
  // Two items of three tokens are an only encoder's to share out.
  sample.input_ids = {1, kImageToken, kImageToken, kImageToken, 4};
  sample.labels.assign(5, 4);
  sample.modalities["images"] = {{{3}, {1, 2, 3}}, {{3}, {4, 5, 6}}};
  EXPECT_TRUE(stage.Loss({Collate({sample}, 0)}).ok());
  MimoModelConfig joined = config;
  auto& encoders = joined.modality_submodules_spec["images"].encoders;
  encoders.emplace_back("other", encoders[0].second);
  const auto two =
      MimoModel::Build(joined, registry, {.allocator = &allocator_, .seed = 1});
  ASSERT_TRUE(two.ok()) << two.status();
  EXPECT_EQ(ForwardError(**two, Collate({sample}, 0)),
            "modality_submodules.images.encoders.clip_encoder: output [3, 12] "
            "of 2 items, wanted as many tokens of each, to join other "
            "encoders'");
  sample.input_ids.resize(4);
  sample.labels.resize(4);
  sample.modalities["images"] = {{{2}, {1, 2}}, {{2}, {3, 4}}};
  // Outputs of the wrong rank or width are named.
  auto* pair = config.modality_submodules_spec["images"]
                   .encoders[0]
                   .second.config.As<PairConfig>();
  pair->flat = true;
  const auto flat =
      MimoModel::Build(config, registry, {.allocator = &allocator_, .seed = 1});
  ASSERT_TRUE(flat.ok()) << flat.status();
  EXPECT_EQ(ForwardError(**flat, Collate({sample}, 0)),
            "modality_submodules.images.encoders.clip_encoder: output [24] is "
            "not supported. Expected 3D [items, tokens, H] or 2D [tokens, H]");
  *pair = {.size = 5};
  model =
      MimoModel::Build(config, registry, {.allocator = &allocator_, .seed = 1});
  ASSERT_TRUE(model.ok());
  MimoStage bad(**model, allocator_);
  EXPECT_THAT(std::string(bad.Loss({Collate({sample}, 0)}).status().message()),
              HasSubstr("clip_encoder: output [2, 5], wanted 12 columns"));
}

}  // namespace
}  // namespace mimo
