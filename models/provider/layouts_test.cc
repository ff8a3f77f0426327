// One micro-batch under layouts of in-process ranks: what each rank computes is
// what one rank does with all samples. Colocated ranks run Forward; others run
// their parts, with bridges of the infra's edges between them.
//
// Length: every layout goes through the one executor.
#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "comm/inproc/inproc.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/status_macros.h"
#include "mimo/optim/adamw.h"
#include "mimo/parallel/sum_over_ranks.h"
#include "models/mimo_model/mimo_stage.h"
#include "models/mimo_model/tiny_llava.h"
#include "models/provider/mimo_model_provider.h"

namespace mimo {
namespace {

using ::testing::HasSubstr;
using Module = ModuleParallelismConfig;

constexpr int kSamples = 12;

struct Options {
  bool images = true;
  bool frozen_encoder = false;
  bool tied = false;
  bool packed = false;  // on the ranks, and padded on the one
};

// Sizes that 1 to 3 tensor-parallel ranks share out.
LlavaConfig Model() {
  LlavaConfig config = Tiny();
  config.language.num_layers = 3;
  config.language.num_attention_heads = 6;
  config.language.num_query_groups = 6;
  config.language.ffn_hidden_size = 48;
  config.language.vocab_size = 36;
  config.vision.num_layers = 5;  // of which 4 run
  config.vision.num_attention_heads = 6;
  config.vision.ffn_hidden_size = 24;
  return config;
}

MimoModelProvider Provider(std::optional<MimoParallelismConfig> parallelism,
                           const Options& options = {}) {
  LlavaConfig model = Model();
  model.language.tie_word_embeddings = options.tied;
  MimoModelProvider provider(BuiltinModules(), LlavaModelConfig(model),
                             std::move(parallelism));
  provider.model.freeze_modality_encoders["images"] = options.frozen_encoder;
  provider.dtype = DType::kFloat64;
  provider.seed = 3;
  return provider;
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
      ModalityItem item{{3, 6, 6}, std::vector<float>(3 * 6 * 6)};
      for (float& x : item.values) x = random.Normal();
      sample.modalities["images"].push_back(item);
    }
    for (int t = 0; t < (i % 6 == 3 ? 1 : 4 + i % 3); ++t)
      sample.input_ids.push_back(random.Below(kImageToken));
    sample.labels = sample.input_ids;
    for (int32_t& label : sample.labels)
      if (label == kImageToken) label = kIgnoreLabel;
  }
  return samples;
}

// Part `rank` of `ranks` equal ones.
std::vector<Sample> Part(const std::vector<Sample>& samples, int rank,
                         int ranks) {
  const auto begin = samples.begin() + kSamples / ranks * rank;
  return {begin, begin + kSamples / ranks};
}

// What a rank reads: text of its replica of the language model, images of its
// lane of the encoder, where it has them; the counts of all samples.
MicroBatch BatchOf(const MimoInfra& infra, const std::vector<Sample>& samples) {
  MicroBatch batch = Collate(samples, 0);
  const auto rows =
      SampleRows(batch.input_ids, kSamples, {{"images", kImageToken}});
  const auto& language = infra.pg_collections.at("language");
  const auto& images = infra.pg_collections.at("images");
  MicroBatch lane;
  if (images != nullptr && images->IsFirstStage()) {
    // A lane for each dp and cp.
    const int cp = images->cp->size();
    lane = Collate(Part(samples, images->dp->rank() * cp + images->cp->rank(),
                        images->dp->size() * cp),
                   0);
  }
  if (language != nullptr) {
    batch =
        Collate(Part(samples, language->dp->rank(), language->dp->size()), 0);
    batch.modalities = std::move(lane.modalities);
  } else {
    batch = std::move(lane);
  }
  batch.sample_rows = rows;
  return batch;
}

using Gradients = std::map<std::string, std::vector<double>>;

// What this rank would update: the gradients of its shards of each module, of
// all replicas together, against the same elements of the whole model's.
void CheckGradients(const MimoModel& model, const DistributedDataParallel& ddp,
                    const Gradients& wanted) {
  for (size_t module = 0; module < model.role().modules.size(); ++module) {
    for (const ParameterShard& shard : ddp.shards(module)) {
      Parameter& p = *shard.parameter;
      std::vector<double> own;  // of the whole, the rank's part
      const auto whole = wanted.at(p.name).begin();
      const int64_t size = p.whole[p.sharding.dim];
      const auto sizes = absl::MakeConstSpan(p.whole);
      const int64_t outer = NumElements(sizes.first(p.sharding.dim));
      const int64_t inner = NumElements(sizes.subspan(p.sharding.dim + 1));
      for (int64_t o = 0; o < outer; ++o) {
        for (const Shard& part : p.sharding.shards) {
          const auto begin = whole + (o * size + part.begin) * inner;
          own.insert(own.end(), begin, begin + part.size * inner);
        }
      }
      const auto grad = p.Grad().span<double>();
      ASSERT_EQ(own.size(), grad.size()) << p.name;
      for (int64_t i = shard.begin; i < shard.end; ++i) {
        // float64 sums in another order.
        ASSERT_NEAR(grad[i], own[i], 1e-11) << p.name << "[" << i << "]";
      }
    }
  }
}

void ExpectEqualToOneRank(const MimoParallelismConfig& parallelism, int ranks,
                          const Options& options = {}) {
  const std::vector<Sample> samples = Samples(options.images);
  Allocator allocator;
  MimoModelProvider one = Provider({}, options);
  const auto whole = one.Provide(
      nullptr, {.allocator = &allocator, .dtype = one.dtype, .seed = one.seed});
  ASSERT_TRUE(whole.ok()) << whole.status();
  MimoStage stage(**whole, allocator);
  const auto loss = stage.ForwardBackward({Collate(samples, 0)}, 1);
  ASSERT_TRUE(loss.ok()) << loss.status();
  AdamW update({}, (*whole)->Parameters(), allocator);
  update.Step(0);
  Gradients wanted;
  for (Parameter* p : (*whole)->Parameters()) {
    if (p->frozen) continue;
    const auto grad = p->Grad().span<double>();
    wanted[p->name].assign(grad.begin(), grad.end());
  }
  const auto results =
      RunRanks(ranks, [&](Communicator& world) -> absl::Status {
        Allocator memory;
        MimoModelProvider provider = Provider(parallelism, options);
        // Buckets of a few parameters each, reduced during the backward.
        MIMO_ASSIGN_OR_RETURN(
            const DistributedModel provided,
            provider.ProvideDistributedModel(
                &world, memory, {.ddp_config = {{.bucket_size = 500}}}));
        DistributedDataParallel& ddp = *provided.data_parallel;
        MimoModel& model = *provided.model;
        for (const auto& [name, stage] : model.role().modules) {
          EXPECT_EQ(model.placement().GroupsOf(name).sequence_parallel,
                    parallelism.Find(name)->sequence_parallel);
        }
        MIMO_ASSIGN_OR_RETURN(const auto infra, provider.BuildInfra(&world));
        MIMO_ASSIGN_OR_RETURN(ModelLinks links,
                              ModelLinks::Connect(model, world, memory));
        // Projections are trained, on the last stage.
        const PipelineSchedule& schedule = links.Program(1, false).schedule;
        const PipelineStage& first =
            schedule.stages[schedule.StageOf("images")];
        EXPECT_EQ(first.backward,
                  !options.frozen_encoder ||
                      schedule.modules[first.module].stages == 1);
        MimoStage stage(model, memory, {.pack = options.packed},
                        std::move(links));
        double sum = 0;
        MIMO_ASSIGN_OR_RETURN(
            sum, stage.ForwardBackward(
                     {BatchOf(*infra, samples)}, 1,
                     {.before_last_backward = [&](const std::string& module) {
                       ddp.BeginLastBackward(module);
                     }}));
        ddp.FinishGradSync();
        MIMO_RETURN_IF_ERROR(ddp.Health());
        CheckGradients(model, ddp, wanted);
        MIMO_RETURN_IF_ERROR(
            SumOverRanks(&world, memory, absl::MakeSpan(&sum, 1)));
        EXPECT_NEAR(sum / *loss, 1, 1e-13);
        // One norm of all modules, known to all ranks, idle ones too.
        std::vector<ParamGroup> groups(ddp.modules().size());
        for (size_t m = 0; m < groups.size(); ++m)
          groups[m].shards = ddp.shards(m);
        AdamW of_shards({}, groups, &world, memory);
        of_shards.Step(0);
        EXPECT_NEAR(of_shards.norm() / update.norm(), 1, 1e-12);
        return absl::OkStatus();
      });
  for (size_t rank = 0; rank < results.size(); ++rank)
    EXPECT_TRUE(results[rank].ok()) << "rank " << rank << ": " << results[rank];
}

Module Sizes(int tp, int dp, int offset = 0) {
  return {.tensor_model_parallel_size = tp,
          .data_parallel_size = dp,
          .rank_offset = offset};
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

// Errors of what a rank reads, before any rank waits for another.
TEST(Layouts, BatchesThatDoNotFit) {
  const MimoParallelismConfig parallelism{
      .deployment_mode = DeploymentMode::kColocated,
      .module_parallelisms = {{"images", Sizes(1, 2)},
                              {"language", Sizes(2, 1)}}};
  RunRanks(2, [&](Communicator& world) -> absl::Status {
    Allocator memory;
    MimoModelProvider provider = Provider(parallelism);
    auto model = *provider.Provide(
        &world, {.allocator = &memory, .dtype = DType::kFloat64});
    const auto infra = *provider.BuildInfra(&world);
    const Context ctx{.allocator = &memory};
    const MicroBatch good = BatchOf(*infra, Samples());
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
