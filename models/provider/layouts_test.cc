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
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "comm/bridge/bridge.h"
#include "comm/bridge/grid_bridge.h"
#include "comm/inproc/inproc.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/status_macros.h"
#include "models/mimo_model/mimo_stage.h"
#include "models/mimo_model/tiny_llava.h"
#include "models/provider/mimo_model_provider.h"

namespace mimo {
namespace {

using ::testing::HasSubstr;
using Module = ModuleParallelismConfig;

constexpr int kSamples = 6;

// Sizes that 1 to 3 tensor-parallel ranks share out.
LlavaConfig Model() {
  LlavaConfig config = Tiny();
  config.language.num_layers = 3;
  config.language.num_attention_heads = 6;
  config.language.num_query_groups = 6;
  config.language.ffn_hidden_size = 48;
  config.language.vocab_size = 36;
  config.vision.num_attention_heads = 6;
  config.vision.ffn_hidden_size = 24;
  return config;
}

MimoModelProvider Provider(std::optional<MimoParallelismConfig> parallelism) {
  MimoModelProvider provider(BuiltinModules(), LlavaModelConfig(Model()),
                             std::move(parallelism));
  provider.dtype = DType::kFloat64;
  provider.seed = 3;
  return provider;
}

// Samples of 0, 1 or 3 images, of different length.
std::vector<Sample> Samples(bool images = true) {
  std::vector<Sample> samples(kSamples);
  PhiloxSequence random(8, 0);
  for (int i = 0; i < kSamples; ++i) {
    Sample& sample = samples[i];
    const int of_sample[] = {1, 0, 3, 0, 1, 3};
    for (int image = 0; images && image < of_sample[i]; ++image) {
      sample.input_ids.push_back(random.Below(kImageToken));
      sample.input_ids.insert(sample.input_ids.end(), 4, kImageToken);
      ModalityItem item{{3, 6, 6}, std::vector<float>(3 * 6 * 6)};
      for (float& x : item.values) x = random.Normal();
      sample.modalities["images"].push_back(item);
    }
    for (int t = 0; t < 4 + i % 3; ++t)
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
  if (images != nullptr) {
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

// An edge of a heterogeneous deployment.
struct Edge {
  std::unique_ptr<Communicator> group;  // null: this rank is on neither side
  std::unique_ptr<Bridge> bridge;
};

absl::StatusOr<Edge> MakeEdge(const MimoInfra& infra, Communicator& world) {
  const BridgeCommConfig comm = infra.BridgeComms().at(0);
  MIMO_ASSIGN_OR_RETURN(const BridgeSide from,
                        SourceSide(comm.source_grid.ranks()));
  MIMO_ASSIGN_OR_RETURN(const BridgeSide to,
                        DestinationSide(comm.destination_grid.ranks()));
  Edge edge;
  MIMO_ASSIGN_OR_RETURN(edge.group,
                        world.Split("bridge", {BridgeRanks(from, to)}));
  if (edge.group == nullptr) return edge;
  MIMO_ASSIGN_OR_RETURN(
      const BridgeGroups groups,
      GridBridgeGroups(comm.source_grid, comm.destination_grid,
                       edge.group.get()));
  MIMO_ASSIGN_OR_RETURN(
      edge.bridge,
      Bridge::Create(from, to, DefaultBridgeRouting(from, to), groups));
  return edge;
}

// Forward and backward of a rank; its loss, 0 without the language model's last
// stage. `pp`: the stages of its language model.
absl::StatusOr<double> RunRank(MimoModel& model, const ModelInputs& inputs,
                               Edge* edge, Communicator* pp,
                               Allocator& allocator,
                               DistributedDataParallel& ddp) {
  ddp.BeginLastBackward();
  Tape encoder_tape, language_tape;
  const RankRole& role = model.role();
  Context ctx{.allocator = &allocator, .tape = &language_tape};
  const Tensor dloss = Tensor::From<double>(allocator, {1}, {1});
  const auto loss_of = [&](const Var& hidden) {
    const Var loss = LossSum(ctx, model, inputs, hidden, dloss);
    language_tape.Backward(ctx, {{loss.slot, dloss}});
    return HostValue(loss.value);
  };
  if (edge == nullptr) {
    MIMO_ASSIGN_OR_RETURN(const Var hidden, model.Forward(ctx, inputs));
    return loss_of(hidden);
  }
  ModuleVars sent, received;
  Var hidden;
  // The language model's stage, between its neighbours.
  const auto run_language = [&]() -> absl::StatusOr<double> {
    const auto exchange = [&](Transfer::Kind kind, const Tensor& x, int to) {
      pp->Exchange({{{kind, x.data(), x.numel(), x.dtype(), to}}}, Stream());
    };
    const Shape shape = {inputs.batch * inputs.seq, 24};
    const bool first = role.IsFirstStage("language");
    if (!first) {
      Var& before = received["language"];
      before = language_tape.Input(ctx.Empty(shape, DType::kFloat64));
      exchange(Transfer::kRecv, before.value, pp->rank() - 1);
    }
    MIMO_ASSIGN_OR_RETURN(hidden, model.ForwardLanguage(ctx, inputs, received));
    double loss = 0;
    if (role.IsLastStage("language")) {
      loss = loss_of(hidden);
    } else {
      exchange(Transfer::kSend, hidden.value, pp->rank() + 1);
      const Tensor gradient = ctx.Empty(shape, DType::kFloat64);
      exchange(Transfer::kRecv, gradient, pp->rank() + 1);
      language_tape.Backward(ctx, {{hidden.slot, gradient}});
    }
    if (!first) {
      exchange(Transfer::kSend,
               language_tape.TakeGrad(received.at("language").slot),
               pp->rank() - 1);
    }
    return loss;
  };
  if (edge->bridge == nullptr) {  // a later stage, or idle
    return role.HasLanguageModule() ? run_language() : 0.0;
  }
  Bridge& bridge = *edge->bridge;
  MIMO_ASSIGN_OR_RETURN(
      const BridgePayload payload,
      RowsPayload(bridge.source(), bridge.destination(),
                  inputs.sample_rows.at("images"), 24, DType::kFloat64));
  if (role.HasModalityModules()) {
    Context on_encoder = ctx;
    on_encoder.tape = &encoder_tape;
    MIMO_ASSIGN_OR_RETURN(sent, model.ForwardModalities(on_encoder, inputs));
  }
  if (role.HasLanguageModule()) {
    received["images"] = language_tape.Input(
        ctx.Empty({payload.destination_rows[bridge.destination_lane()], 24},
                  DType::kFloat64));
  }
  const auto data = [](const ModuleVars& vars) {
    return vars.empty() ? nullptr : vars.at("images").value.data();
  };
  MIMO_RETURN_IF_ERROR(
      bridge.Forward({payload, data(sent), data(received)}, ctx.compute));
  double loss = 0;
  Tensor drows, dsent;
  if (role.HasLanguageModule()) {
    MIMO_ASSIGN_OR_RETURN(loss, run_language());
    drows = language_tape.TakeGrad(received.at("images").slot);
  }
  if (role.HasModalityModules())
    dsent = ctx.Empty(sent.at("images").value.shape(), DType::kFloat64);
  MIMO_RETURN_IF_ERROR(
      bridge.Backward({payload, drows.defined() ? drows.data() : nullptr,
                       dsent.defined() ? dsent.data() : nullptr},
                      ctx.compute));
  if (role.HasModalityModules()) {
    encoder_tape.Backward(ctx, {{sent.at("images").slot, dsent}});
  }
  return loss;
}

void ExpectEqualToOneRank(const MimoParallelismConfig& parallelism, int ranks,
                          bool images = true) {
  const std::vector<Sample> samples = Samples(images);
  Allocator allocator;
  MimoModelProvider one = Provider({});
  const auto whole = one.Provide(
      nullptr, {.allocator = &allocator, .dtype = one.dtype, .seed = one.seed});
  ASSERT_TRUE(whole.ok()) << whole.status();
  MimoStage stage(**whole, allocator);
  const auto loss = stage.ForwardBackward(Collate(samples, 0), 1, nullptr);
  ASSERT_TRUE(loss.ok()) << loss.status();
  Gradients wanted;
  for (Parameter* p : (*whole)->Parameters()) {
    if (p->frozen) continue;
    const auto grad = p->Grad().span<double>();
    wanted[p->name].assign(grad.begin(), grad.end());
  }
  const auto results =
      RunRanks(ranks, [&](Communicator& world) -> absl::Status {
        Allocator memory;
        MimoModelProvider provider = Provider(parallelism);
        // Buckets of a few parameters each, reduced during the backward.
        MIMO_ASSIGN_OR_RETURN(
            const DistributedModel provided,
            provider.ProvideDistributedModel(
                &world, memory, {.ddp_config = {{.bucket_size = 500}}}));
        DistributedDataParallel& ddp = *provided.data_parallel;
        MimoModel& model = *provided.model;
        MIMO_ASSIGN_OR_RETURN(const auto infra, provider.BuildInfra(&world));
        Edge edge;
        const bool apart = model.role().layout == ModuleLayout::kNonColocated;
        if (apart) {
          MIMO_ASSIGN_OR_RETURN(edge, MakeEdge(*infra, world));
        }
        const Context ctx{.allocator = &memory};
        MIMO_ASSIGN_OR_RETURN(const ModelInputs inputs,
                              model.Prepare(ctx, BatchOf(*infra, samples)));
        const auto& language = infra->pg_collections.at("language");
        MIMO_ASSIGN_OR_RETURN(
            double sum,
            RunRank(model, inputs, apart ? &edge : nullptr,
                    language == nullptr ? nullptr : language->pp, memory, ddp));
        ddp.FinishGradSync();
        MIMO_RETURN_IF_ERROR(ddp.Health());
        CheckGradients(model, ddp, wanted);
        if (!model.role().IsLastStage("language")) return absl::OkStatus();
        Communicator& dp = *language->dp;
        dp.AllReduce(&sum, &sum, 1, DType::kFloat64, ReduceOp::kSum, Stream());
        EXPECT_NEAR(sum / *loss, 1, 1e-13);
        return dp.Health();
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

// Stages of the language model's three layers.
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
    ExpectEqualToOneRank(
        {.deployment_mode = DeploymentMode::kHeterogeneous,
         .module_parallelisms = {{"images", encoder}, {"language", language}}},
        language.rank_offset + *language.TotalRanks());
  }
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
        apart ? 3 : 2, /*images=*/false);
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
              "input_ids: 32 images tokens, wanted 36, what sample_rows says "
              "of this replica's samples");
    batch = good;
    batch.modalities.clear();  // but the tokens are there: no silent zeros
    EXPECT_THAT(
        std::string(model->Forward(ctx, *model->Prepare(ctx, batch))
                        .status()
                        .message()),
        HasSubstr("inputs are missing, but matching special tokens exist"));
    batch = good;
    auto& items = batch.modalities["images"];
    items.values.resize(items.values.size() / items.shape[0]);
    items.shape[0] = 1;
    EXPECT_THAT(std::string(model->Forward(ctx, *model->Prepare(ctx, batch))
                                .status()
                                .message()),
                HasSubstr("does not match number of images embeddings (4)"));
    return absl::OkStatus();
  });
}

}  // namespace
}  // namespace mimo
