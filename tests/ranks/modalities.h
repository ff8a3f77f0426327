// A trainer on each rank, of a model with two modalities.
#ifndef MIMO_TESTS_RANKS_MODALITIES_H_
#define MIMO_TESTS_RANKS_MODALITIES_H_

#include <algorithm>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "comm/inproc/inproc.h"
#include "gtest/gtest.h"
#include "mimo/data/dataset.h"
#include "mimo/train/loader_source.h"
#include "mimo/train/trainer.h"
#include "models/infra/data_share.h"
#include "models/provider/encoders_testing.h"
#include "models/provider/layout_testing.h"
#include "tests/testing/run_mimo.h"
#include "tests/testing/trained.h"

namespace mimo {

// Images and sketches, either alone, or text.
class Scrapbook : public Dataset {
 public:
  Scrapbook() {
    for (const auto& kinds : std::vector<std::vector<ItemKind>>{
             {kImageItems, kSketchItems}, {kImageItems}, {}, {kSketchItems}}) {
      for (Sample& sample : Samples(kinds))
        samples_.push_back(std::move(sample));
    }
  }
  int64_t size() const override { return samples_.size(); }
  absl::StatusOr<Sample> Text(int64_t index, int64_t /*visit*/) const override {
    return Sample{samples_[index].input_ids, samples_[index].labels, {}};
  }
  absl::StatusOr<std::vector<ModalityItem>> Items(
      int64_t index, int64_t /*visit*/,
      const std::string& modality) const override {
    const auto& all = samples_[index].modalities;
    const auto found = all.find(modality);
    return found == all.end() ? std::vector<ModalityItem>() : found->second;
  }
  int64_t ItemTokens(int64_t index, int64_t /*visit*/,
                     const std::string& modality) const override {
    return std::ranges::count(samples_[index].input_ids, modality == "images"
                                                             ? kImageToken
                                                             : kSketchToken);
  }

 private:
  std::vector<Sample> samples_;
};

// The model's, but in iteration 4 the gradient of the first parameter that
// `module` trains here overflows.
class Overflow final : public TrainStage {
 public:
  Overflow(MimoModel& model, MimoStage& stage, std::string module)
      : model_(model), stage_(stage), module_(std::move(module)) {}

  std::vector<Parameter*> Parameters() override { return stage_.Parameters(); }
  absl::StatusOr<Tensor> ForwardBackward(
      absl::Span<const MicroBatch> batches, const Tensor& loss_scale,
      const AroundIteration& around) override {
    AroundIteration bad = around;
    if (++iteration_ == 4) {
      bad.before_last_backward = [&](const std::string& module) {
        if (module == module_) Spoil();
        around.before_last_backward(module);
      };
    }
    return stage_.ForwardBackward(batches, loss_scale, bad);
  }
  absl::StatusOr<double> Loss(absl::Span<const MicroBatch> batches) override {
    return stage_.Loss(batches);
  }
  bool CountsTokens() const override { return stage_.CountsTokens(); }
  double IdealBubble(int micro_batches, const StageTimes& times) override {
    return stage_.IdealBubble(micro_batches, times);
  }
  void SetProfiler(Profiler* profiler) override {
    stage_.SetProfiler(profiler);
  }

 private:
  void Spoil() {
    for (Parameter* p : model_.module(module_).Parameters()) {
      if (p->frozen) continue;
      p->Grad().span<float>()[0] = std::numeric_limits<float>::infinity();
      return;
    }
  }

  MimoModel& model_;
  MimoStage& stage_;
  const std::string module_;
  int iteration_ = 0;
};

// The bytes of all weights and moments that were saved after `iteration`.
inline std::map<std::string, std::string> Tensors(const std::string& folder,
                                                  int iteration) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(
           absl::StrCat(folder, "/save/iter_000000", iteration))) {
    if (entry.path().extension() == ".safetensors")
      files[entry.path().filename()] = Read(entry.path());
  }
  return files;
}

// What a rank trains, in folder; `spoilt`: the module of which the last rank's
// gradient overflows once.
struct ModalitiesRun {
  MimoModelConfig model;
  MimoParallelismConfig parallelism;
  std::string folder, spoilt;
};

inline absl::Status TrainRank(const ModalitiesRun& run, Communicator& world,
                              Stream stream) {
  Allocator allocator(stream);
  MimoModelProvider provider = ProviderOf(run.model, run.parallelism);
  provider.dtype = DType::kFloat32;
  MIMO_ASSIGN_OR_RETURN(
      const DistributedModel provided,
      provider.ProvideDistributedModel(&world, allocator,
                                       {.ddp_config = {{.bucket_size = 500}}}));
  MIMO_ASSIGN_OR_RETURN(const auto infra, provider.BuildInfra(&world));
  MIMO_ASSIGN_OR_RETURN(
      ModelLinks links,
      ModelLinks::Connect(*provided.model, world, allocator, /*run_ahead=*/2));
  MimoStage stage(*provided.model, allocator, {}, std::move(links));
  Overflow overflow(*provided.model, stage, run.spoilt);
  const bool bad = !run.spoilt.empty() &&
                   world.rank() + 1 == infra->parallelism.Span(run.spoilt)->end;
  TrainerOptions options;
  options.data_parallel_size =
      *infra->parallelism.Find("language")->data_parallel_size;
  options.train.train_iters = 8;
  options.train.micro_batch_size = kSamples / options.data_parallel_size;
  options.train.global_batch_size = 3 * kSamples;
  options.train.check_replicas_interval = 2;
  options.optimizer.lr = 2e-3;
  options.optimizer.weight_decay = 0.1;
  options.optimizer.clip_grad = 1;
  options.checkpoint.save = run.folder + "/save";
  if (!run.spoilt.empty()) options.checkpoint.save_interval = 1;
  options.logging.metrics = run.folder + "/metrics.jsonl";
  options.logging.progress = false;
  options.run_ahead = stream.device == Device::kCuda;
  options.world = &world;
  LoaderSource source(
      std::make_shared<Scrapbook>(),
      {.share = DataShareOf(*infra, options.train.micro_batch_size),
       .seed = 5});
  MIMO_ASSIGN_OR_RETURN(
      const auto trainer,
      Trainer::Create(options, bad ? static_cast<TrainStage&>(overflow) : stage,
                      *provided.data_parallel, source, allocator));
  return trainer->Run().status();
}

// What the ranks of `run` leave behind.
inline Trained Left(const ModalitiesRun& run) {
  if (!run.spoilt.empty()) {
    EXPECT_TRUE(Tensors(run.folder, 4) == Tensors(run.folder, 3));
    EXPECT_FALSE(Tensors(run.folder, 5) == Tensors(run.folder, 4));
  }
  return {Untimed(ReadMetrics(run.folder + "/metrics.jsonl")),
          LoadSaved(run.folder, "model"), LoadSaved(run.folder, "optimizer")};
}

// On threads.
inline Trained TrainOn(const MimoModelConfig& model,
                       const MimoParallelismConfig& parallelism, int ranks,
                       const std::string& spoilt = "") {
  const ModalitiesRun run = {model, parallelism, TestFolder("run"), spoilt};
  for (const absl::Status& status : RunRanks(ranks, [&](Communicator& world) {
         return TrainRank(run, world, {});
       })) {
    EXPECT_TRUE(status.ok()) << status;
  }
  return Left(run);
}

// The first has one rank.
inline const std::vector<LayoutCase>& Layouts() {
  static const auto& layouts = *new std::vector<LayoutCase>{
      {kHomogeneous,
       1,
       {{"images", Sizes(1, 1)},
        {"sketches", Sizes(1, 1)},
        {"language", Sizes(1, 1)}}},
      {kHomogeneous,
       4,
       {{"images", Sizes(1, 2, 0, 2)},
        {"sketches", Sizes(1, 2, 0, 2)},
        {"language", Sizes(1, 2, 0, 2)}}},
      {kColocated,
       6,
       {{"images", Sizes(1, 6)},
        {"sketches", Sizes(3, 2)},
        {"language", Sizes(2, 3)}}},
      {kColocated,
       4,
       {{"images", Sizes(1, 4)},
        {"sketches", Sizes(2, 2)},
        {"language", Sizes(2, 1, 0, 2)}}},
      {kHeterogeneous,
       6,
       {{"images", Sizes(1, 1)},
        {"sketches", Sizes(1, 2, 1)},
        {"language", Sizes(1, 3, 3)}}},
      {kHeterogeneous,
       6,
       {{"images", Sizes(1, 1)},
        {"sketches", Sizes(1, 1, 1, 3)},
        {"language", Sizes(1, 1, 4, 2)}}},
      {kHeterogeneous,
       4,
       {{"images", Sizes(1, 2)},
        {"sketches", Sizes(2, 1)},
        {"language", Sizes(1, 2, 2)}}},
  };
  return layouts;
}

}  // namespace mimo

#endif  // MIMO_TESTS_RANKS_MODALITIES_H_
