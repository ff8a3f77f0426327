// One rank and many: what each rank of a layout computes is what one rank does
// with all samples. For the tests of layouts.
#ifndef MIMO_MODELS_PROVIDER_LAYOUT_TESTING_H_
#define MIMO_MODELS_PROVIDER_LAYOUT_TESTING_H_

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "comm/inproc/inproc.h"
#include "gtest/gtest.h"
#include "kernels/base/status_macros.h"
#include "kernels/random/philox.h"
#include "mimo/optim/adamw.h"
#include "mimo/parallel/sum_over_ranks.h"
#include "models/mimo_model/mimo_stage.h"
#include "models/mimo_model/tiny_llava.h"
#include "models/provider/mimo_model_provider.h"

namespace mimo {

inline constexpr int kSamples = 12;  // of a global micro-batch

// Sizes that 1 to 3 tensor-parallel ranks share out.
inline LlavaConfig LayoutModel() {
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

struct Trial {
  MimoModelConfig model;
  std::vector<std::vector<Sample>> micro_batches;  // kSamples in each
  bool packed = false;  // on the ranks, and padded on the one
  int run_ahead = 0;
};

inline ModuleParallelismConfig Sizes(int tp, int dp, int offset = 0,
                                     int pp = 1) {
  return {.tensor_model_parallel_size = tp,
          .pipeline_model_parallel_size = pp,
          .data_parallel_size = dp,
          .rank_offset = offset};
}

inline ModuleParallelismConfig Cp(int cp, ModuleParallelismConfig module) {
  module.context_parallel_size = cp;
  return module;
}

inline MimoModelProvider ProviderOf(
    const MimoModelConfig& model,
    std::optional<MimoParallelismConfig> parallelism) {
  MimoModelProvider provider(BuiltinModules(), model, std::move(parallelism));
  provider.dtype = DType::kFloat64;
  provider.seed = 3;
  return provider;
}

inline ModalityItem RandomItem(Shape shape, PhiloxSequence& random) {
  ModalityItem item{{shape.begin(), shape.end()},
                    std::vector<float>(NumElements(shape))};
  for (float& x : item.values) x = random.Normal();
  return item;
}

// Part `rank` of `ranks` equal ones.
inline std::vector<Sample> Part(const std::vector<Sample>& samples, int rank,
                                int ranks) {
  const auto begin = samples.begin() + kSamples / ranks * rank;
  return {begin, begin + kSamples / ranks};
}

// What a rank reads: text of its replica of the language model, items of its
// lane of each encoder, where it has them; the counts of all samples.
inline MicroBatch BatchOf(const MimoInfra& infra,
                          const std::map<std::string, int64_t>& special,
                          const std::vector<Sample>& samples) {
  MicroBatch batch;
  if (const auto& language = infra.pg_collections.at("language");
      language != nullptr) {
    batch =
        Collate(Part(samples, language->dp->rank(), language->dp->size()), 0);
    batch.modalities.clear();
  }
  for (const auto& [name, id] : special) {
    const auto& groups = infra.pg_collections.at(name);
    if (groups == nullptr || !groups->IsFirstStage()) continue;
    // A lane for each dp and cp.
    const int cp = groups->cp->size();
    MicroBatch lane =
        Collate(Part(samples, groups->dp->rank() * cp + groups->cp->rank(),
                     groups->dp->size() * cp),
                0);
    if (lane.modalities.contains(name))
      batch.modalities[name] = std::move(lane.modalities[name]);
  }
  batch.sample_rows =
      SampleRows(Collate(samples, 0).input_ids, kSamples, special);
  return batch;
}

// Of gradients, as far as nothing else was done with the modules' groups.
inline int64_t Reductions(const DistributedDataParallel& ddp) {
  int64_t sum = 0;
  for (const DataParallelModule& module : ddp.modules()) {
    if (module.group == nullptr) continue;
    const auto operations = module.group->LastOperations();
    if (!operations.empty()) sum += operations.back().sequence + 1;
  }
  return sum;
}

using Gradients = std::map<std::string, std::vector<double>>;

// What this rank would update: the gradients of its shards of each module, of
// all replicas together, against the same elements of the whole model's.
inline void CheckGradients(const MimoModel& model,
                           const DistributedDataParallel& ddp,
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

// Makes every other label the one that `model`, whole, finds likeliest; how
// many of each sample are not.
inline std::vector<double> AnswerHalf(const MimoModel& model,
                                      std::vector<Sample>& samples) {
  Allocator allocator;
  const Context ctx{.allocator = &allocator};
  std::vector<double> mistakes;
  for (Sample& sample : samples) {
    mistakes.push_back(0);
    const auto inputs =
        model.Prepare(ctx, Collate({sample}, 0), {.all_rows = true});
    CHECK_OK(inputs.status());
    const auto hidden = model.Forward(ctx, *inputs);
    CHECK_OK(hidden.status());
    const Tensor logits = model.language_model().Logits(ctx, hidden->value);
    for (size_t t = 1; t < sample.labels.size(); ++t) {
      int32_t& label = sample.labels[t];
      if (label == kIgnoreLabel) continue;
      const auto row = logits.Rows(t - 1, t);
      const auto z = row.span<double>();
      const int32_t likeliest =
          std::max_element(z.begin(), z.end()) - z.begin();
      if (t % 2 == 0) label = likeliest;
      mistakes.back() += label != likeliest;
    }
  }
  return mistakes;
}

inline void ExpectEqualToOneRank(const MimoParallelismConfig& parallelism,
                                 int ranks, const Trial& trial) {
  Allocator allocator;
  MimoModelProvider one = ProviderOf(trial.model, {});
  const auto whole = one.Provide(
      nullptr, {.allocator = &allocator, .dtype = one.dtype, .seed = one.seed});
  ASSERT_TRUE(whole.ok()) << whole.status();
  MimoStage stage(**whole, allocator);
  std::vector<MicroBatch> batches;
  for (const std::vector<Sample>& samples : trial.micro_batches)
    batches.push_back(Collate(samples, 0));
  const auto loss = stage.ForwardBackward(batches, 1);
  ASSERT_TRUE(loss.ok()) << loss.status();
  AdamW update({}, (*whole)->Parameters(), allocator);
  update.Step(0);
  Gradients wanted;
  for (Parameter* p : (*whole)->Parameters()) {
    if (p->frozen) continue;
    const auto grad = p->Grad().span<double>();
    wanted[p->name].assign(grad.begin(), grad.end());
  }
  auto questions = trial.micro_batches;
  std::vector<double> mistakes;
  for (std::vector<Sample>& samples : questions) {
    const std::vector<double> of_samples = AnswerHalf(**whole, samples);
    mistakes.insert(mistakes.end(), of_samples.begin(), of_samples.end());
  }
  const auto results =
      RunRanks(ranks, [&](Communicator& world) -> absl::Status {
        Allocator memory;
        MimoModelProvider provider = ProviderOf(trial.model, parallelism);
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
        MIMO_ASSIGN_OR_RETURN(
            ModelLinks links,
            ModelLinks::Connect(model, world, memory, trial.run_ahead));
        const PipelineSchedule& schedule = links.Program(1, false).schedule;
        const auto frozen = [](const auto& flags, const std::string& name) {
          const auto at = flags.find(name);
          return at != flags.end() && at->second;
        };
        for (const auto& [name, id] : trial.model.special_token_ids) {
          const PipelineStage& first = schedule.stages[schedule.StageOf(name)];
          // Projections are on the last stage.
          EXPECT_EQ(
              first.backward,
              !frozen(trial.model.freeze_modality_encoders, name) ||
                  (schedule.modules[first.module].stages == 1 &&
                   !frozen(trial.model.freeze_modality_projections, name)));
        }
        MimoStage stage(model, memory, {.pack = trial.packed},
                        std::move(links));
        std::vector<MicroBatch> asked;
        for (const std::vector<Sample>& samples : questions) {
          asked.push_back(
              BatchOf(*infra, trial.model.special_token_ids, samples));
        }
        MIMO_ASSIGN_OR_RETURN(const auto parts, stage.Mistakes(asked));
        const auto& language = infra->pg_collections.at("language");
        std::vector<double> found(mistakes.size());
        for (size_t m = 0; m < parts.size(); ++m) {
          if (language == nullptr) continue;
          std::copy(parts[m].begin(), parts[m].end(),
                    found.begin() + m * kSamples +
                        kSamples / language->dp->size() * language->dp->rank());
        }
        MIMO_RETURN_IF_ERROR(
            SumOverRanks(&world, memory, absl::MakeSpan(found)));
        EXPECT_EQ(found, mistakes);
        std::vector<MicroBatch> own;
        for (const std::vector<Sample>& samples : trial.micro_batches) {
          own.push_back(
              BatchOf(*infra, trial.model.special_token_ids, samples));
        }
        double sum = 0;
        std::string in;  // its last backward
        MIMO_ASSIGN_OR_RETURN(
            sum, stage.ForwardBackward(
                     own, 1,
                     {.before_last_backward =
                          [&](const std::string& module) {
                            in = module;
                            ddp.BeginLastBackward(module);
                          },
                      .after_last_backward =
                          [&] {
                            const int64_t reduced = Reductions(ddp);
                            ddp.EndLastBackward();
                            if (in == "language" ||
                                own.back().modalities.contains(in)) {
                              EXPECT_EQ(Reductions(ddp), reduced) << in;
                            }
                          }}));
        const int64_t reduced = Reductions(ddp);
        ddp.FinishGradSync();
        EXPECT_EQ(Reductions(ddp), reduced);
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

}  // namespace mimo

#endif  // MIMO_MODELS_PROVIDER_LAYOUT_TESTING_H_
