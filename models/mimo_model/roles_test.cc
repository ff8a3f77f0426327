// A model whose modules are on several ranks: what each builds and runs.
#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "comm/base/planned_communicator.h"
#include "gtest/gtest.h"
#include "models/mimo_model/mimo_stage.h"
#include "models/mimo_model/tiny_llava.h"

namespace mimo {
namespace {

class RolesTest : public MimoModelTest {
 protected:
  std::unique_ptr<MimoModel> BuildRole(
      std::map<std::string, StageInfo> modules,
      const MimoModelConfig& config = LlavaModelConfig(Tiny())) {
    auto model = MimoModel::Build(
        config, BuiltinModules(), {.allocator = &allocator_, .seed = 11},
        ModelPlacement{.role = {.layout = ModuleLayout::kNonColocated,
                                .modules = std::move(modules)}});
    EXPECT_TRUE(model.ok()) << model.status();
    return *std::move(model);
  }
  // A stage of two of the encoder.
  std::unique_ptr<MimoModel> BuildStage(int stage) {
    auto model = MimoModel::Build(
        LlavaModelConfig(Tiny()), BuiltinModules(),
        {.allocator = &allocator_, .seed = 11},
        ModelPlacement{
            .role = {.layout = ModuleLayout::kNonColocated,
                     .modules = {{"images", {stage == 0, stage == 1}}}},
            .parallel = {{"images", {.pp = &stages_[stage]}}}});
    EXPECT_TRUE(model.ok()) << model.status();
    return *std::move(model);
  }
  PlannedCommunicator stages_[2] = {{0, 2}, {1, 2}};
  // Every gradient of the models, by name.
  static std::map<std::string, std::vector<float>> Gradients(
      const std::vector<const MimoModel*>& models) {
    std::map<std::string, std::vector<float>> all;
    for (const MimoModel* model : models) {
      for (Parameter* p : model->Parameters()) {
        if (p->frozen) continue;
        const auto grad = p->Grad().span<float>();
        EXPECT_TRUE(
            all.emplace(p->name, std::vector<float>(grad.begin(), grad.end()))
                .second)
            << p->name << " is on two ranks";
      }
    }
    return all;
  }
  // A module's outputs as another rank receives them: other tensors, of its own
  // tape.
  ModuleVars Carry(const ModuleVars& from, Tape& tape) {
    ModuleVars to;
    for (const auto& [name, var] : from)
      to[name] = tape.Input(var.value.Clone(allocator_));
    return to;
  }
  // The gradients of what was received, as seeds of what was sent.
  static std::vector<Tape::Seed> CarryBack(const ModuleVars& to, Tape& tape,
                                           const ModuleVars& from) {
    std::vector<Tape::Seed> seeds;
    for (const auto& [name, var] : from)
      seeds.push_back({var.slot, tape.TakeGrad(to.at(name).slot)});
    return seeds;
  }
};

TEST_F(RolesTest, OnlyOwnModulesAreBuilt) {
  const auto whole = Build(Tiny());
  const auto encoder = BuildRole({{"images", {}}});
  const auto language = BuildRole({{"language", {}}});
  EXPECT_FALSE(encoder->role().HasLanguageModule());
  EXPECT_FALSE(language->role().HasModalityModules());
  std::map<std::string, std::vector<float>> values;
  for (Parameter* p : whole->Parameters()) {
    const auto v = p->data.span<float>();
    values[p->name].assign(v.begin(), v.end());
  }
  size_t parameters = 0;
  for (const MimoModel* part : {encoder.get(), language.get()}) {
    for (Parameter* p : part->Parameters()) {
      EXPECT_EQ(absl::StartsWith(p->name, "language_model."),
                part == language.get());
      const auto v = p->data.span<float>();
      // First values do not depend on the layout.
      EXPECT_EQ(values.at(p->name), std::vector<float>(v.begin(), v.end()));
      ++parameters;
    }
  }
  EXPECT_EQ(parameters, values.size());
  EXPECT_DEATH(encoder->language_model(), "no language model on this rank");
  EXPECT_TRUE(BuildRole({})->Parameters().empty());  // an idle rank
}

TEST_F(RolesTest, FreezingToleratesModulesOfOtherRanks) {
  MimoModelConfig config = LlavaModelConfig(Tiny());
  config.freeze_language_model = true;
  config.freeze_modality_encoders["images"] = true;
  config.freeze_modality_projections["images"] = false;
  EXPECT_FALSE(BuildRole({{"language", {}}}, config)->Trainable());
  const auto encoder = BuildRole({{"images", {}}}, config);
  for (Parameter* p : encoder->Parameters())
    EXPECT_EQ(p->frozen, !absl::StrContains(p->name, "projection")) << p->name;
  config.freeze_modality_projections["images"] = true;
  EXPECT_FALSE(BuildRole({{"images", {}}}, config)->Trainable());
}

// One micro-batch over two ranks: bitwise what one rank does.
TEST_F(RolesTest, EncoderAndLanguageRankAreTheWholeModel) {
  const auto whole = Build(Tiny());
  MimoStage stage(*whole, allocator_);
  const MicroBatch batch = TwoSamples();
  const double loss = *stage.ForwardBackward({batch}, 0.5);

  const auto encoder = BuildRole({{"images", {}}});
  const auto language = BuildRole({{"language", {}}});
  Tape encoder_tape, language_tape;
  const Context on_encoder{.allocator = &allocator_, .tape = &encoder_tape};
  const Context on_language{.allocator = &allocator_, .tape = &language_tape};
  const auto pixels = encoder->Prepare(on_encoder, batch);
  const auto text = language->Prepare(on_language, batch);
  ASSERT_TRUE(pixels.ok() && text.ok());
  EXPECT_FALSE(pixels->layout.text_ids.defined());
  EXPECT_TRUE(text->modalities.empty());
  EXPECT_EQ(pixels->sample_rows.at("images"), std::vector<int64_t>({4, 4}));

  const auto rows = encoder->ForwardModalities(on_encoder, *pixels);
  ASSERT_TRUE(rows.ok()) << rows.status();
  const ModuleVars received = Carry(*rows, language_tape);
  const auto hidden = language->ForwardLanguage(on_language, *text, received);
  ASSERT_TRUE(hidden.ok()) << hidden.status();
  const Tensor dloss = Tensor::From<double>(allocator_, {1}, {0.5});
  const Var sum = language->language_model().Loss(on_language, *hidden,
                                                  text->targets, dloss);
  EXPECT_EQ(HostValue(sum.value), loss);
  language_tape.Backward(on_language, {{sum.slot, dloss}});
  encoder_tape.Backward(on_encoder, CarryBack(received, language_tape, *rows));
  EXPECT_EQ(Gradients({encoder.get(), language.get()}),
            Gradients({whole.get()}));
}

TEST_F(RolesTest, StagesOfAModality) {
  const auto whole = BuildRole({{"images", {}}});
  const auto first = BuildStage(0), last = BuildStage(1);
  for (Parameter* p : first->Parameters())
    EXPECT_FALSE(absl::StrContains(p->name, "input_projections")) << p->name;
  EXPECT_EQ(first->Parameters().size() + last->Parameters().size(),
            whole->Parameters().size());
  const Context ctx{.allocator = &allocator_};
  const auto inputs = whole->Prepare(ctx, TwoSamples());
  ASSERT_TRUE(inputs.ok()) << inputs.status();
  const auto passed = first->ForwardModality(ctx, "images", *inputs);
  ASSERT_TRUE(passed.ok()) << passed.status();
  EXPECT_EQ(passed->value.shape(), Shape({10, 12}));  // class tokens too
  const auto rows = last->ForwardModality(
      ctx, "images", ModelInputs{.rows = inputs->rows}, &*passed);
  const auto wanted = whole->ForwardModality(ctx, "images", *inputs);
  ASSERT_TRUE(rows.ok() && wanted.ok());
  EXPECT_TRUE(std::ranges::equal(rows->value.span<float>(),
                                 wanted->value.span<float>()));
  // Encoded ahead.
  ModelInputs ahead = *inputs;
  const Tensor& pixels = ahead.modalities["images"]["clip_encoder"];
  ahead.features["images"] =
      *first->modality("images").Encode(ctx, {{"clip_encoder", pixels}});
  ahead.modalities.clear();
  EXPECT_TRUE(std::ranges::equal(
      first->ForwardModality(ctx, "images", ahead)->value.span<float>(),
      passed->value.span<float>()));

  const auto message = [](const absl::StatusOr<Var>& out) {
    return std::string(out.status().message());
  };
  EXPECT_EQ(message(last->ForwardModality(ctx, "images", *inputs, &*passed)),
            "modality_submodules.images: inputs and what the stage before "
            "passed are mutually exclusive");
  ModelInputs wrong = *inputs;
  wrong.rows["images"] = 4;
  EXPECT_EQ(message(first->ForwardModality(ctx, "images", wrong)),
            "modality_submodules.images: features [10, 12], wanted [5, 12] of "
            "items with 4 tokens");
  wrong.rows["images"] = 7;
  EXPECT_EQ(message(first->ForwardModality(ctx, "images", wrong)),
            "modality_submodules.images: 7 tokens, wanted a multiple of 4, "
            "those of an item");
}

TEST_F(RolesTest, LaterStageTakesHiddenStatesInPlaceOfTokens) {
  const auto language = BuildRole({{"language", {false, true}}});
  const Context ctx{.allocator = &allocator_};
  const auto text = language->Prepare(ctx, TwoSamples());
  ASSERT_TRUE(text.ok()) << text.status();
  Tensor hidden(allocator_, {text->batch * text->seq, 24}, DType::kFloat32);
  PhiloxSequence random(5, 0);
  for (float& x : hidden.span<float>()) x = random.Normal();
  const auto out =
      language->ForwardLanguage(ctx, *text, {{"language", Var{hidden}}});
  ASSERT_TRUE(out.ok()) << out.status();
  const Var wanted = language->language_model().Forward(
      ctx, Var{hidden}, text->batch, text->seq, nullptr, 0, text->loss_rows);
  EXPECT_TRUE(
      std::ranges::equal(out->value.span<float>(), wanted.value.span<float>()));
  EXPECT_DEATH(language->ForwardLanguage(ctx, *text, {}).IgnoreError(),
               "a later stage of language");
}

TEST_F(RolesTest, TextOnlyBatchGivesNoRowsThatTakeAGradient) {
  Sample sample;
  sample.input_ids = {1, 5, 7, 2};
  sample.labels = sample.input_ids;
  const MicroBatch batch = Collate({sample}, 0);
  const auto encoder = BuildRole({{"images", {}}});
  const auto language = BuildRole({{"language", {}}});
  Tape encoder_tape, language_tape;
  const Context on_encoder{.allocator = &allocator_, .tape = &encoder_tape};
  const Context on_language{.allocator = &allocator_, .tape = &language_tape};
  const auto rows = encoder->ForwardModalities(
      on_encoder, *encoder->Prepare(on_encoder, batch));
  ASSERT_TRUE(rows.ok()) << rows.status();
  const Var& none = rows->at("images");
  EXPECT_EQ(none.value.shape(), Shape({0, 24}));
  EXPECT_EQ(none.value.dtype(), DType::kFloat32);
  EXPECT_TRUE(none.needs_grad());

  const auto text = language->Prepare(on_language, batch);
  ASSERT_TRUE(text.ok()) << text.status();
  const ModuleVars received = Carry(*rows, language_tape);
  const auto hidden = language->ForwardLanguage(on_language, *text, received);
  ASSERT_TRUE(hidden.ok()) << hidden.status();
  const Var loss =
      language->language_model().Loss(on_language, *hidden, text->targets, {});
  language_tape.Backward(
      on_language, {{loss.slot, Tensor::From<double>(allocator_, {1}, {1})}});
  const std::vector<Tape::Seed> seeds =
      CarryBack(received, language_tape, *rows);
  EXPECT_EQ(seeds[0].grad.shape(), Shape({0, 24}));
  encoder_tape.Backward(on_encoder, seeds);
  for (Parameter* p : encoder->Parameters()) EXPECT_FALSE(p->written);
  // Of several stages the first passes on what the last has a gradient for.
  const auto first = BuildStage(0), last = BuildStage(1);
  const auto passed = first->ForwardModality(
      on_encoder, "images", *first->Prepare(on_encoder, batch));
  ASSERT_TRUE(passed.ok()) << passed.status();
  EXPECT_EQ(passed->value.shape(), *first->modality("images").PassedShape(0));
  EXPECT_EQ(last->ForwardModality(on_encoder, "images",
                                  *last->Prepare(on_encoder, batch), &*passed)
                ->value.shape(),
            Shape({0, 24}));
}

TEST_F(RolesTest, SpecialTokensWithoutInputsAreAnError) {
  MicroBatch batch = TwoSamples();
  batch.modalities.clear();
  for (const auto& model : {Build(Tiny()), BuildRole({{"images", {}}})}) {
    const Context ctx{.allocator = &allocator_};
    EXPECT_EQ(
        model->ForwardModalities(ctx, *model->Prepare(ctx, batch))
            .status()
            .message(),
        "modality_submodules.images: inputs are missing, but matching special "
        "tokens exist: 8, and 0 embeddings");
  }
}

TEST_F(RolesTest, RowsOfEachSample) {
  const std::vector<int32_t> ids = {31, 31, 4, 30, 1, 2, 30, 31, 31, 31, 3, 4};
  const auto rows = SampleRows(ids, 3, {{"images", 31}, {"sounds", 30}});
  EXPECT_EQ(rows.at("images"), std::vector<int64_t>({2, 1, 2}));
  EXPECT_EQ(rows.at("sounds"), std::vector<int64_t>({1, 1, 0}));
  EXPECT_EQ(SampleRows(ids, 1, {{"images", 31}}).at("images"),
            std::vector<int64_t>({5}));
  EXPECT_TRUE(SampleRows(ids, 3, {}).empty());
}

}  // namespace
}  // namespace mimo
