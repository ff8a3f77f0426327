// One micro-batch under layouts of in-process ranks: what each rank computes is
// what one rank does with all samples. Colocated ranks run Forward; others run
// their parts, with bridges of the infra's edges between them.
//
// Length: every layout goes through the one executor.
#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "comm/inproc/inproc.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "models/mimo_model/tiny_llava.h"
#include "models/provider/layout_testing.h"

namespace mimo {
namespace {

using ::testing::HasSubstr;
using Module = ModuleParallelismConfig;

struct Options {
  bool images = true;
  bool frozen_encoder = false;
  bool tied = false;
  bool packed = false;  // on the ranks, and padded on the one
};

MimoModelConfig ModelWith(const Options& options) {
  LlavaConfig config = LayoutModel();
  config.language.tie_word_embeddings = options.tied;
  config.freeze_modality_encoders["images"] = options.frozen_encoder;
  return LlavaModelConfig(config);
}

// Samples of 0, 1 or 3 images, of different length; two are of one token.
std::vector<Sample> Samples(bool images = true) {
  std::vector<Sample> samples(kSamples);
  PhiloxSequence random(8, 0);
  for (int i = 0; i < kSamples; ++i) {
    Sample& sample = samples[i];
    const int of_sample[] = {1, 0, 3, 0, 1, 3};
    for (int image = 0; images && image < of_sample[i % 6]; ++image) {
      sample.input_ids.push_back(random.Below(kImageToken));
      sample.input_ids.insert(sample.input_ids.end(), 4, kImageToken);
      sample.modalities["images"].push_back(RandomItem({3, 6, 6}, random));
    }
    for (int t = 0; t < (i % 6 == 3 ? 1 : 4 + i % 3); ++t)
      sample.input_ids.push_back(random.Below(kImageToken));
    sample.labels = sample.input_ids;
    for (int32_t& label : sample.labels)
      if (label == kImageToken) label = kIgnoreLabel;
  }
  return samples;
}

void ExpectEqualToOneRank(const MimoParallelismConfig& parallelism, int ranks,
                          const Options& options = {}) {
  ExpectEqualToOneRank(parallelism, ranks,
                       Trial{.model = ModelWith(options),
                             .micro_batches = {Samples(options.images)},
                             .packed = options.packed});
}

TEST(Layouts, Homogeneous) {
  ExpectEqualToOneRank({.deployment_mode = DeploymentMode::kHomogeneous,
                        .module_parallelisms = {{"images", Sizes(1, 3)},
                                                {"language", Sizes(1, 3)}}},
                       3);
}

TEST(Layouts, ColocatedFanInFanOutAndNeither) {
  // (tp, dp) of the encoder and of the language model, on 6 ranks.
  for (const auto& [encoder, language] :
       std::vector<std::pair<Module, Module>>{{Sizes(1, 6), Sizes(2, 3)},
                                              {Sizes(3, 2), Sizes(1, 6)},
                                              {Sizes(2, 3), Sizes(2, 3)},
                                              {Sizes(3, 2), Sizes(2, 3)}}) {
    ExpectEqualToOneRank(
        {.deployment_mode = DeploymentMode::kColocated,
         .module_parallelisms = {{"images", encoder}, {"language", language}}},
        6);
  }
}

TEST(Layouts, HeterogeneousFanInAndFanOut) {
  for (const auto& [encoder, language] :
       std::vector<std::pair<int, int>>{{3, 1}, {1, 3}, {2, 3}}) {
    ExpectEqualToOneRank(
        {.deployment_mode = DeploymentMode::kHeterogeneous,
         .module_parallelisms = {{"images", Sizes(1, encoder)},
                                 {"language", Sizes(1, language, encoder)}}},
        encoder + language);
  }
}

// Stages of the language model's three layers, with one table on two of them.
TEST(Layouts, Pipelines) {
  for (const auto& [encoder, language] : std::vector<std::pair<Module, Module>>{
           {Sizes(1, 2),
            {.pipeline_model_parallel_size = 2,
            .data_parallel_size = 1,
            .rank_offset = 2}},
           {Sizes(2, 1),
            {.pipeline_model_parallel_size = 3,
            .data_parallel_size = 2,
            .rank_offset = 2}},
           {Sizes(1, 3),
            {.tensor_model_parallel_size = 2,
            .pipeline_model_parallel_size = 2,
            .data_parallel_size = 1,
            .rank_offset = 3}}}) {
    for (bool tied : {false, true}) {
      ExpectEqualToOneRank({.deployment_mode = DeploymentMode::kHeterogeneous,
                            .module_parallelisms = {{"images", encoder},
                                                    {"language", language}}},
                           language.rank_offset + *language.TotalRanks(),
                           {.tied = tied});
    }
  }
}

// Stages of the encoder's five layers, of which four run.
TEST(Layouts, EncoderPipelines) {
  const auto stages = [](int pp, int tp, int dp, int offset = 0) {
    Module module = Sizes(tp, dp, offset);
    module.pipeline_model_parallel_size = pp;
    return module;
  };
  for (const auto& [encoder, language] : std::vector<std::pair<Module, Module>>{
           {stages(2, 1, 1), Sizes(1, 2, 2)},
           {stages(3, 1, 1), stages(2, 1, 1, 3)},
           {stages(2, 2, 1), stages(2, 1, 2, 4)},
           {stages(2, 1, 3), Sizes(1, 1, 6)}}) {
    for (bool frozen_encoder : {false, true}) {
      ExpectEqualToOneRank({.deployment_mode = DeploymentMode::kHeterogeneous,
                            .module_parallelisms = {{"images", encoder},
                                                    {"language", language}}},
                           language.rank_offset + *language.TotalRanks(),
                           {.frozen_encoder = frozen_encoder});
    }
  }
  const MimoParallelismConfig homogeneous{
      .deployment_mode = DeploymentMode::kHomogeneous,
      .module_parallelisms = {{"images", stages(2, 1, 1)},
                              {"language", stages(2, 1, 1)}}};
  ExpectEqualToOneRank(homogeneous, 2);
  ExpectEqualToOneRank(homogeneous, 2, {.images = false});
  ExpectEqualToOneRank(homogeneous, 2, {.frozen_encoder = true});
  ExpectEqualToOneRank(homogeneous, 2, {.tied = true});
}

// The cp ranks of an encoder have samples of their own, as its replicas do.
TEST(Layouts, ContextParallelEncoder) {
  ExpectEqualToOneRank({.deployment_mode = DeploymentMode::kColocated,
                        .module_parallelisms = {{"images",
                                                 {.context_parallel_size = 2,
                                                  .data_parallel_size = 3}},
                                                {"language", Sizes(2, 3)}}},
                       6);
}

TEST(Layouts, ContextParallelLanguageModel) {
  const auto cp = [](int size, Module module) {
    module.context_parallel_size = size;
    return module;
  };
  const auto homogeneous = DeploymentMode::kHomogeneous;
  const auto colocated = DeploymentMode::kColocated;
  const auto apart = DeploymentMode::kHeterogeneous;
  for (const auto& [mode, encoder, language] :
       std::vector<std::tuple<DeploymentMode, Module, Module>>{
           {homogeneous, cp(2, Sizes(1, 1)), cp(2, Sizes(1, 1))},
           {homogeneous, cp(2, Sizes(2, 1)), cp(2, Sizes(2, 1))},
           {colocated, Sizes(1, 4), cp(2, Sizes(2, 1))},
           {colocated, Sizes(2, 2), cp(4, Sizes(1, 1))},
           {colocated, cp(2, Sizes(1, 2)), cp(2, Sizes(1, 2))},
           {colocated, cp(2, Sizes(1, 3)), cp(3, Sizes(1, 2))},
           {apart, Sizes(1, 1), cp(2, Sizes(1, 1, 1))},
           {apart, cp(2, Sizes(1, 1)), cp(2, Sizes(2, 1, 2))},
           {apart, Sizes(1, 3), cp(2, Sizes(1, 2, 3))}}) {
    ExpectEqualToOneRank(
        {.deployment_mode = mode,
         .module_parallelisms = {{"images", encoder}, {"language", language}}},
        language.rank_offset + *language.TotalRanks());
  }
}

// One to six tokens, and eight chunks.
TEST(Layouts, SamplesShorterThanTheirChunks) {
  ExpectEqualToOneRank({.deployment_mode = DeploymentMode::kColocated,
                        .module_parallelisms = {{"images", Sizes(1, 4)},
                                                {"language",
                                                 {.context_parallel_size = 4,
                                                  .data_parallel_size = 1}}}},
                       4, {.images = false});
}

// Of either module, beside context parallelism and between pipeline stages; the
// tokens of a micro-batch are not divided evenly.
TEST(Layouts, SequenceParallel) {
  for (const auto& [encoder, language] : std::vector<std::pair<Module, Module>>{
           {{.tensor_model_parallel_size = 2,
  .sequence_parallel = true,
  .data_parallel_size = 2},
            {.tensor_model_parallel_size = 2,
            .sequence_parallel = true,
            .context_parallel_size = 2,
            .data_parallel_size = 1}},
           {{.data_parallel_size = 6},
            {.tensor_model_parallel_size = 3,
            .sequence_parallel = true,
            .pipeline_model_parallel_size = 2,
            .data_parallel_size = 1}}}) {
    ExpectEqualToOneRank(
        {.deployment_mode = DeploymentMode::kColocated,
         .module_parallelisms = {{"images", encoder}, {"language", language}}},
        *language.TotalRanks());
  }
}

TEST(Layouts, PackedEqualsPaddedOnOneRank) {
  const auto homogeneous = DeploymentMode::kHomogeneous;
  const auto colocated = DeploymentMode::kColocated;
  const auto apart = DeploymentMode::kHeterogeneous;
  const Module cp = {.context_parallel_size = 2, .data_parallel_size = 1};
  const Module pp = {.pipeline_model_parallel_size = 2,
                     .data_parallel_size = 1};
  const Module all = {.tensor_model_parallel_size = 2,
                      .sequence_parallel = true,
                      .pipeline_model_parallel_size = 2,
                      .context_parallel_size = 2,
                      .data_parallel_size = 1,
                      .rank_offset = 3};
  for (const auto& [mode, encoder, language] :
       std::vector<std::tuple<DeploymentMode, Module, Module>>{
           {homogeneous, Sizes(1, 3), Sizes(1, 3)},
           {homogeneous, Sizes(2, 1), Sizes(2, 1)},
           {homogeneous, cp, cp},
           {homogeneous, pp, pp},
           {colocated, Sizes(1, 6), Sizes(2, 3)},
           {apart, Sizes(1, 3), Sizes(1, 2, 3)},
           {apart, Sizes(1, 3), all}}) {
    for (bool images : {false, true}) {
      ExpectEqualToOneRank({.deployment_mode = mode,
                            .module_parallelisms = {{"images", encoder},
                                                    {"language", language}}},
                           language.rank_offset + *language.TotalRanks(),
                           {.images = images, .packed = true});
    }
  }
}

// Rank 1 has both kinds of module and runs both.
TEST(Layouts, SpansThatOverlapInPart) {
  ExpectEqualToOneRank({.deployment_mode = DeploymentMode::kHeterogeneous,
                        .module_parallelisms = {{"images", Sizes(1, 2)},
                                                {"language", Sizes(1, 2, 1)}}},
                       3);
}

TEST(Layouts, IdleRanksTakePartInTheWorld) {
  ExpectEqualToOneRank({.deployment_mode = DeploymentMode::kHeterogeneous,
                        .module_parallelisms = {{"images", Sizes(1, 1)},
                                                {"language", Sizes(1, 2, 2)}},
                        .allow_idle_ranks = true},
                       5);
}

TEST(Layouts, TextOnly) {
  for (DeploymentMode mode :
       {DeploymentMode::kColocated, DeploymentMode::kHeterogeneous}) {
    const bool apart = mode == DeploymentMode::kHeterogeneous;
    ExpectEqualToOneRank(
        {.deployment_mode = mode,
         .module_parallelisms = {{"images", Sizes(1, 2)},
                                 {"language",
                                  Sizes(apart ? 1 : 2, 1, apart ? 2 : 0)}}},
        apart ? 3 : 2, {.images = false});
  }
}

// Of ranks that do not see each other's modules, all refuse it.
TEST(Layouts, RowsOfAnotherWidth) {
  MimoModelConfig narrow = ModelWith({});
  narrow.modality_submodules_spec["images"].input_projections.clear();
  const MimoParallelismConfig parallelism{
      .deployment_mode = DeploymentMode::kHeterogeneous,
      .module_parallelisms = {{"images", Sizes(1, 2)},
                              {"language", Sizes(2, 1, 2)}}};
  const auto results = RunRanks(4, [&](Communicator& world) -> absl::Status {
    Allocator memory;
    const auto model =
        *ProviderOf(narrow, parallelism)
             .Provide(&world, {.allocator = &memory, .dtype = DType::kFloat64});
    return ModelLinks::Connect(*model, world, memory).status();
  });
  for (const absl::Status& status : results) {
    EXPECT_EQ(status.message(),
              "images embeddings of 12 columns, wanted 24, the language "
              "model's hidden_size");
  }
}

// Errors of what a rank reads, before any rank waits for another.
TEST(Layouts, BatchesThatDoNotFit) {
  const MimoParallelismConfig parallelism{
      .deployment_mode = DeploymentMode::kColocated,
      .module_parallelisms = {{"images", Sizes(1, 2)},
                              {"language", Sizes(2, 1)}}};
  RunRanks(2, [&](Communicator& world) -> absl::Status {
    Allocator memory;
    MimoModelProvider provider = ProviderOf(ModelWith({}), parallelism);
    auto model = *provider.Provide(
        &world, {.allocator = &memory, .dtype = DType::kFloat64});
    const auto infra = *provider.BuildInfra(&world);
    const Context ctx{.allocator = &memory};
    const MicroBatch good =
        BatchOf(*infra, {{"images", kImageToken}}, Samples());
    EXPECT_TRUE(model->Prepare(ctx, good).ok());
    MicroBatch batch = good;
    batch.sample_rows.clear();
    EXPECT_EQ(model->Prepare(ctx, batch).status().message(),
              "sample_rows: none of modality images, wanted those of the "
              "global micro-batch");
    batch = good;
    batch.sample_rows["images"][1] = 4;
    EXPECT_EQ(model->Prepare(ctx, batch).status().message(),
              "input_ids: 64 images tokens, wanted 68, what sample_rows says "
              "of this replica's samples");
    batch = good;
    batch.modalities.clear();  // but the tokens are there: no silent zeros
    EXPECT_THAT(
        std::string(model->ForwardModalities(ctx, *model->Prepare(ctx, batch))
                        .status()
                        .message()),
        HasSubstr("inputs are missing, but matching special tokens exist"));
    batch = good;
    auto& items = batch.modalities["images"];
    items.values.resize(items.values.size() / items.shape[0]);
    items.shape[0] = 1;
    EXPECT_THAT(
        std::string(model->ForwardModalities(ctx, *model->Prepare(ctx, batch))
                        .status()
                        .message()),
        HasSubstr("does not match number of images embeddings (4)"));
    return absl::OkStatus();
  });
}

}  // namespace
}  // namespace mimo
