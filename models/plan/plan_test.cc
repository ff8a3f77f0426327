// The memory of a plan, counted by hand.
#include "models/plan/plan.h"

#include <map>
#include <string>
#include <vector>

#include "absl/log/check.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "models/llava/llava.h"

namespace mimo {
namespace {

using ::testing::HasSubstr;
using Module = ModuleParallelismConfig;

// Language: L = 4 layers of H = 64, F = 96, N = 4 and G = 2 heads of D = 16,
// V = 100, S = 32. Vision: 3 layers of which 2 run, H = 48, F = 80, N = 2 of D
// = 24, 1 + 4 tokens. Projection: 48 -> 64 -> 64.
LlavaConfig Llava() {
  LlavaConfig llava;
  llava.language = {.num_layers = 4,
                    .hidden_size = 64,
                    .ffn_hidden_size = 96,
                    .num_attention_heads = 4,
                    .num_query_groups = 2,
                    .vocab_size = 100,
                    .max_sequence_length = 32};
  llava.vision = {.num_layers = 3,
                  .hidden_size = 48,
                  .ffn_hidden_size = 80,
                  .num_attention_heads = 2,
                  .image_size = 16,
                  .patch_size = 8};
  llava.special_token_ids = {{"images", 4}};
  return llava;
}
constexpr int64_t kH = 64, kF = 96, kV = 100, kS = 32;
constexpr int64_t kHeads = 2 * (4 + 2) * 16;  // kept of a token
constexpr int64_t kLayer = kH * 4 * 16 + 2 * kH * 2 * 16 + 4 * 16 * kH +
                           3 * kH * kF + 2 * kH;  // parameters
constexpr int64_t kVisionKept = 4 * 48 + 2 * 4 * 24 + 2 * 80;

MimoPlan Plan(const LlavaConfig& llava, DeploymentMode mode, Module images,
              Module language, int world, TrainConfig train = {},
              OptimizerConfig optimizer = {}) {
  MimoParallelismConfig config = {
      .deployment_mode = mode,
      .module_parallelisms = {{"images", images}, {"language", language}}};
  CHECK_OK(config.Finalize(world));
  auto plan = MakePlan(LlavaModelConfig(llava), BuiltinModules(), config, world,
                       train, optimizer);
  CHECK_OK(plan.status());
  return *std::move(plan);
}
const RankMemory& Stage(const MimoPlan& plan, int module, int stage = 0) {
  return plan.modules[module].stages[stage];
}

TrainConfig Batches(int64_t micro, int64_t global, int64_t run_ahead = 2) {
  return {.micro_batch_size = micro,
          .global_batch_size = global,
          .encoder_run_ahead = run_ahead};
}

TEST(Plan, OneRank) {
  const MimoPlan plan =
      Plan(Llava(), DeploymentMode::kHomogeneous, {}, {}, 1, Batches(3, 6));
  EXPECT_EQ(plan.micro_batches, 2);
  const ParameterCount images = plan.modules[0].Total(),
                       language = plan.modules[1].Total();
  EXPECT_EQ(language.parameters, 2 * kV * kH + 4 * kLayer + kH);
  EXPECT_EQ(plan.modules[0].parts.size(), 2);
  EXPECT_EQ(Stage(plan, 1),
            (RankMemory{
                .weights = 4 * language.parameters,
                .gradients = 4 * language.parameters,
                .optimizer = 8 * language.parameters,
                .activations = 3 * kS * 4 * 4 * (4 * kH + kHeads + 3 * kF),
            }));
  // The layer that does not run, and the last norm, are not trained.
  EXPECT_LT(images.trainable, images.parameters);
  EXPECT_EQ(
      Stage(plan, 0),
      (RankMemory{
          .weights = 4 * images.parameters,
          .gradients = 4 * images.trainable,
          .optimizer = 8 * images.trainable,
          .activations = 3 * 4 * (5 * 2 * kVisionKept + 4 * (48 + 2 * 64)),
      }));
  const std::vector<RankMemory> ranks = plan.MemoryOfRanks();
  ASSERT_EQ(ranks.size(), 1);
  EXPECT_EQ(ranks[0].Total(), Stage(plan, 0).Total() + Stage(plan, 1).Total());
}

TEST(Plan, DtypeAndRecompute) {
  TrainConfig train = Batches(1, 1);
  train.dtype = "bfloat16";
  LlavaConfig llava = Llava();
  llava.language.recompute = Recompute::kSelective;
  llava.language.recompute_layers = 3;
  const MimoPlan plan =
      Plan(llava, DeploymentMode::kHomogeneous, {}, {}, 1, train);
  const int64_t parameters = plan.modules[1].Total().parameters;
  EXPECT_EQ(Stage(plan, 1),
            (RankMemory{.weights = 2 * parameters,
                        .gradients = 4 * parameters,
                        .optimizer = 10 * parameters,
                        .activations = kS * 2 *
                                       (3 * (3 * kH + kHeads) + 4 * kH +
                                        kHeads + 3 * kF)}));
  const auto bytes = [&](const char* dtype) {
    train.dtype = dtype;
    return Stage(Plan(llava, DeploymentMode::kHomogeneous, {}, {}, 1, train),
                 1);
  };
  RankMemory twice = bytes("float32");
  twice += twice;
  EXPECT_EQ(bytes("float64"), twice);
}

TEST(Plan, FirstMomentInBFloat16) {
  OptimizerConfig optimizer;
  optimizer.exp_avg_dtype = DType::kBFloat16;
  for (const char* dtype : {"float32", "bfloat16"}) {
    TrainConfig train = Batches(1, 1);
    train.dtype = dtype;
    const auto plan = [&](const OptimizerConfig& with) {
      return Stage(
          Plan(Llava(), DeploymentMode::kHomogeneous, {}, {}, 1, train, with),
          1);
    };
    const RankMemory full = plan({}), half = plan(optimizer);
    EXPECT_EQ(half.optimizer, full.optimizer - full.gradients / 2);
    EXPECT_EQ(half.Total(), full.Total() - full.gradients / 2);
  }
}

TEST(Plan, FrozenModules) {
  LlavaConfig llava = Llava();
  llava.freeze_language_model = true;
  llava.freeze_modality_encoders = {{"images", true}};
  const MimoPlan plan = Plan(llava, DeploymentMode::kHomogeneous, {}, {}, 1);
  EXPECT_EQ(Stage(plan, 1).gradients, 0);
  EXPECT_EQ(Stage(plan, 1).optimizer, 0);
  EXPECT_EQ(Stage(plan, 1).activations,
            kS * 4 * 4 * (2 * kH + kHeads + 2 * kF));
  EXPECT_EQ(Stage(plan, 0).gradients, 4 * (48 * 64 + 64 + 64 * 64 + 64));
  EXPECT_EQ(Stage(plan, 0).activations, 4 * 4 * (48 + 2 * 64) + 2 * 4 * 4 * 48);
  llava.freeze_modality_projections = {{"images", true}};
  EXPECT_EQ(Stage(Plan(llava, DeploymentMode::kHomogeneous, {}, {}, 1,
                       Batches(1, 1, 3)),
                  0)
                .activations,
            3 * 4 * 4 * 64);
  // Of a pipelined encoder the stage that trains the projection keeps it, of
  // two micro-batches: one is with the language model.
  llava = Llava();
  llava.freeze_modality_encoders = {{"images", true}};
  const MimoPlan stages =
      Plan(llava, DeploymentMode::kHeterogeneous,
           {.pipeline_model_parallel_size = 2, .data_parallel_size = 1},
           {.data_parallel_size = 1, .rank_offset = 2}, 3, Batches(1, 4));
  EXPECT_FALSE(
      stages.schedule.stages[stages.schedule.StageOf("images", 0)].backward);
  EXPECT_EQ(Stage(stages, 0, 0).activations, 2 * 4 * 5 * 48);
  EXPECT_EQ(Stage(stages, 0, 1).activations, 2 * 4 * 4 * (2 * 48 + 2 * 64));
}

// A trained weight is quantised anew for each product; norms never are.
TEST(Plan, FrozenModulesInEightBits) {
  LlavaConfig llava = Llava();
  const auto weights = [&] {
    return Stage(Plan(llava, DeploymentMode::kHomogeneous, {}, {}, 1), 1)
        .weights;
  };
  const int64_t plain = weights();
  llava.quantization = {{"language", Quantization::kFp8}};
  EXPECT_EQ(weights(), plain);
  llava.freeze_language_model = true;
  EXPECT_EQ(weights(), plain + (2 - 4) * 4 * (kLayer - 2 * kH));
}

// Three stages hold 2, 1 and 1 layers; the first has the embedding, the last
// norm and head. Each keeps as many micro-batches as there are stages from it
// on, the encoder in front one more.
TEST(Plan, PipelineStages) {
  LlavaConfig llava = Llava();
  const Module images = {.data_parallel_size = 1},
               language = {.pipeline_model_parallel_size = 3,
                           .data_parallel_size = 1,
                           .rank_offset = 1};
  const auto plan = [&](int64_t micro_batches) {
    return Plan(llava, DeploymentMode::kHeterogeneous, images, language, 4,
                Batches(1, micro_batches));
  };
  const MimoPlan many = plan(9);
  EXPECT_EQ(Stage(many, 1, 0).weights, 4 * (kV * kH + 2 * kLayer));
  EXPECT_EQ(Stage(many, 1, 1).weights, 4 * kLayer);
  EXPECT_EQ(Stage(many, 1, 2).weights, 4 * (kV * kH + kLayer + kH));
  const int64_t layer = kS * 4 * (4 * kH + kHeads + 3 * kF);
  const int64_t vision = 4 * (5 * 2 * kVisionKept + 4 * (48 + 2 * 64));
  EXPECT_EQ(Stage(many, 1, 0).activations, 3 * 2 * layer);
  EXPECT_EQ(Stage(many, 1, 1).activations, 2 * layer);
  EXPECT_EQ(Stage(many, 1, 2).activations, layer);
  EXPECT_EQ(Stage(many, 0).activations, 4 * vision);
  const MimoPlan two = plan(2);
  EXPECT_EQ(Stage(two, 1, 0).activations, 2 * 2 * layer);
  EXPECT_EQ(Stage(two, 0).activations, 2 * vision);
  const std::vector<RankMemory> ranks = two.MemoryOfRanks();
  EXPECT_EQ(ranks[0], Stage(two, 0));
  EXPECT_EQ(ranks[3], Stage(two, 1, 2));

  llava.language.tie_word_embeddings = true;  // one table on both ends
  EXPECT_EQ(Stage(plan(2), 1, 2).weights, Stage(two, 1, 2).weights);
  EXPECT_EQ(plan(2).modules[1].Total().parameters,
            two.modules[1].Total().parameters - kV * kH);
}

// The projection is on an encoder's last stage.
TEST(Plan, EncoderStages) {
  const auto plan = [](int stages) {
    return Plan(
        Llava(), DeploymentMode::kHeterogeneous,
        {.pipeline_model_parallel_size = stages, .data_parallel_size = 1},
        {.data_parallel_size = 1, .rank_offset = stages}, stages + 1);
  };
  const MimoPlan one = plan(1), two = plan(2);
  EXPECT_EQ(Stage(two, 0, 0).weights + Stage(two, 0, 1).weights,
            Stage(one, 0).weights);
  EXPECT_EQ(Stage(two, 0, 0).activations, 2 * 4 * 5 * kVisionKept);
  EXPECT_EQ(Stage(two, 0, 1).activations, 4 * 4 * (48 + 2 * 64));
}

// Colocated encoders run all micro-batches before the pipeline starts.
TEST(Plan, ColocatedPipeline) {
  const MimoPlan plan =
      Plan(Llava(), DeploymentMode::kColocated, {},
           {.pipeline_model_parallel_size = 2}, 2, Batches(2, 10));
  EXPECT_EQ(plan.modules[0].micro_batch_size, 1);
  EXPECT_EQ(Stage(plan, 0).activations,
            5 * 4 * (5 * 2 * kVisionKept + 4 * (48 + 2 * 64)));
  EXPECT_EQ(Stage(plan, 1, 1).activations,
            2 * 2 * kS * 4 * (4 * kH + kHeads + 3 * kF));
  EXPECT_EQ(plan.MemoryOfRanks()[1].Total(),
            Stage(plan, 0).Total() + Stage(plan, 1, 1).Total());
}

TEST(Plan, TensorContextAndSequenceParallelActivations) {
  for (bool sequence_parallel : {false, true}) {
    const MimoPlan plan =
        Plan(Llava(), DeploymentMode::kHeterogeneous, {.data_parallel_size = 1},
             {.tensor_model_parallel_size = 2,
              .sequence_parallel = sequence_parallel,
              .context_parallel_size = 4,
              .data_parallel_size = 1,
              .rank_offset = 1},
             9);
    const int64_t whole = sequence_parallel ? 4 * kH / 2 : 4 * kH;
    EXPECT_EQ(Stage(plan, 1).activations,
              kS / 4 * 4 * 4 * (whole + (kHeads + 3 * kF) / 2));
  }
}

// Ranks with the same parameters share out the optimizer's state, not the
// gradients; 4 layers, 2 tables and a norm are not divided evenly.
TEST(Plan, OptimizerStateIsSharded) {
  const auto stage = [](int cp, int dp) {
    return Stage(
        Plan(Llava(), DeploymentMode::kHomogeneous,
             {.context_parallel_size = cp}, {.context_parallel_size = cp},
             cp * dp, Batches(cp, cp * dp)),
        1);
  };
  const RankMemory one = stage(1, 1), four = stage(2, 2);
  EXPECT_EQ(four.gradients, one.gradients);
  EXPECT_EQ(four.weights, one.weights);
  EXPECT_EQ(four.optimizer, one.optimizer / 4);
  EXPECT_GE(stage(1, 3).optimizer, (one.optimizer + 2) / 3);
  EXPECT_LE(stage(1, 3).optimizer, one.optimizer / 3 + 8 * 43);
}

// Matrices and vocabulary are split over tp ranks, norms are whole; the rank
// with most counts. Past two ranks key and value heads have copies.
TEST(Plan, WeightsAsTheModulesSplitThem) {
  for (const int tp : {1, 2, 3, 4}) {
    const MimoPlan plan =
        Plan(Llava(), DeploymentMode::kHeterogeneous, {.data_parallel_size = 1},
             {.tensor_model_parallel_size = tp,
              .data_parallel_size = 1,
              .rank_offset = 1},
             1 + tp);
    const auto part = [tp](int64_t n) { return (n + tp - 1) / tp; };
    const int64_t layer =
        kH * 16 * (2 * part(4) + 2 * part(2)) + 3 * kH * part(kF) + 2 * kH;
    const int64_t parameters = 2 * part(kV) * kH + 4 * layer + kH;
    EXPECT_EQ(Stage(plan, 1).weights, 4 * parameters) << tp;
    EXPECT_EQ(Stage(plan, 1).optimizer, 8 * parameters) << tp;
    EXPECT_EQ(plan.modules[1].Total().parameters,
              2 * kV * kH + 4 * kLayer + kH);
  }
}

TEST(Plan, AProjectionForEachEncoder) {
  MimoModelConfig model = LlavaModelConfig(Llava());
  ModalitySpec& images = model.modality_submodules_spec.at("images");
  images.encoders.emplace_back("second", images.encoders[0].second);
  MimoParallelismConfig config = {
      .module_parallelisms = {{"images", {}}, {"language", {}}}};
  CHECK_OK(config.Finalize(1));
  const int64_t tokens[] = {5 + 5, 4 + 4};  // of layers, of projections
  for (int projections : {1, 2}) {
    images.input_projections.resize(projections, images.input_projections[0]);
    const auto plan =
        MakePlan(model, BuiltinModules(), config, 1, Batches(1, 1));
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_EQ(plan->modules[0].parts.size(), 2 + projections);
    EXPECT_EQ(Stage(*plan, 0).activations,
              4 * (tokens[0] * 2 * kVisionKept + tokens[1] * (48 + 2 * 64)));
  }
}

// Weights alone: the decoder's where its stages are, the projection's on the
// first.
TEST(Plan, DecodersAndOutputProjections) {
  MimoModelConfig model = LlavaModelConfig(Llava());
  ModalitySpec& images = model.modality_submodules_spec.at("images");
  MimoParallelismConfig config = {
      .deployment_mode = DeploymentMode::kHeterogeneous,
      .module_parallelisms = {
          {"images",
           {.pipeline_model_parallel_size = 2, .data_parallel_size = 1}},
          {"language", {.data_parallel_size = 1, .rank_offset = 2}}}};
  CHECK_OK(config.Finalize(3));
  const auto before =
      MakePlan(model, BuiltinModules(), config, 3, Batches(1, 1));
  ASSERT_TRUE(before.ok()) << before.status();
  images.decoders.emplace_back("painter", model.language_model_spec);
  images.output_projections = images.input_projections;
  const auto plan = MakePlan(model, BuiltinModules(), config, 3, Batches(1, 1));
  ASSERT_TRUE(plan.ok()) << plan.status();
  std::map<std::string, ParameterCount> parts(plan->modules[0].parts.begin(),
                                              plan->modules[0].parts.end());
  const std::string path = "modality_submodules.images.";
  const ParameterCount projection = parts[path + "output_projections.0"];
  EXPECT_EQ(projection.parameters,
            parts[path + "input_projections.0"].parameters);
  EXPECT_EQ(projection.trainable, 0);
  EXPECT_EQ(parts[path + "decoders.painter"].trainable, 0);
  RankMemory first = Stage(*before, 0, 0), last = Stage(*before, 0, 1);
  first.weights += 4 * (kV * kH + 2 * kLayer + projection.parameters);
  last.weights += 4 * (2 * kLayer + kH + kV * kH);
  EXPECT_EQ(Stage(*plan, 0, 0), first);
  EXPECT_EQ(Stage(*plan, 0, 1), last);
}

TEST(Plan, Refuses) {
  MimoParallelismConfig config = {
      .module_parallelisms = {{"images", {}}, {"language", {}}}};
  CHECK_OK(config.Finalize(2));
  const auto plan = MakePlan(LlavaModelConfig(Llava()), BuiltinModules(),
                             config, 2, Batches(1, 3));
  EXPECT_THAT(plan.status().message(),
              HasSubstr("must divide global_batch_size 3"));
  config.module_parallelisms[0].second =
      config.module_parallelisms[1].second = {.tensor_model_parallel_size = 5};
  CHECK_OK(config.Finalize(5));
  EXPECT_THAT(MakePlan(LlavaModelConfig(Llava()), BuiltinModules(), config, 5,
                       TrainConfig())
                  .status()
                  .message(),
              HasSubstr("5"));
  LlavaConfig llava = Llava();
  llava.language.ffn_hidden_size = 80;
  llava.quantization = {{"language", Quantization::kFp8}};
  config.module_parallelisms[0].second =
      config.module_parallelisms[1].second = {.tensor_model_parallel_size = 2};
  CHECK_OK(config.Finalize(2));
  EXPECT_EQ(MakePlan(LlavaModelConfig(llava), BuiltinModules(), config, 2,
                     TrainConfig())
                .status()
                .message(),
            "language_model.layers.0.mlp.fc2.weight: [64, 40] on a rank, "
            "wanted multiples of 16 with quantization fp8");
  config.module_parallelisms[0].second =
      config.module_parallelisms[1].second = {.pipeline_model_parallel_size =
                                                  5};
  CHECK_OK(config.Finalize(5));
  EXPECT_EQ(MakePlan(LlavaModelConfig(Llava()), BuiltinModules(), config, 5,
                     TrainConfig())
                .status()
                .message(),
            "modality_submodules.images.encoders.clip_encoder: num_layers: 3, "
            "wanted at least one for each of 5 stages");
}

}  // namespace
}  // namespace mimo
