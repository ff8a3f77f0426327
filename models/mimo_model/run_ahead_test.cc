// Training that runs ahead of the device is the same training.
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/device.h"
#include "kernels/testing/backend.h"
#include "mimo/train/toy_stage.h"
#include "mimo/train/trainer.h"
#include "models/mimo_model/mimo_stage.h"
#include "models/mimo_model/tiny_llava.h"

namespace mimo {
namespace {

using Clock = std::chrono::steady_clock;

// Other pixels in each batch; with `shapes` now and then other labelled rows.
class Batches : public BatchSource {
 public:
  explicit Batches(bool shapes) : shapes_(shapes) {}
  absl::StatusOr<MicroBatch> Next() override {
    MicroBatch batch = TwoSamples();
    for (float& x : batch.modalities["images"].values) x *= 1 + 0.1f * next_;
    if (shapes_ && next_ % 5 == 3) batch.labels.assign(batch.labels.size(), 5);
    ++next_;
    return batch;
  }
  absl::Status Seek(int64_t) override {
    next_ = 0;
    return absl::OkStatus();
  }

 private:
  const bool shapes_;
  int next_ = 0;
};

// A stage that gives the device as much to do before each iteration as takes
// it a while.
class SlowStage : public TrainStage {
 public:
  SlowStage(TrainStage& stage, Allocator& allocator)
      : stage_(stage),
        memory_(allocator, {int64_t{1} << 30}, DType::kUInt8),
        stream_(allocator.stream()) {
    Delay();
    Synchronize(stream_);
  }
  absl::StatusOr<Tensor> ForwardBackward(
      absl::Span<const MicroBatch> batches, const Tensor& loss_scale,
      const AroundIteration& around) override {
    begins.push_back(Clock::now());
    delays.emplace_back(RecordEvent(stream_));
    Delay();
    delays.emplace_back(RecordEvent(stream_));
    return stage_.ForwardBackward(batches, loss_scale, around);
  }
  std::vector<Parameter*> Parameters() override { return stage_.Parameters(); }
  absl::StatusOr<double> Loss(absl::Span<const MicroBatch> batches) override {
    return stage_.Loss(batches);
  }
  bool CountsTokens() const override { return stage_.CountsTokens(); }
  double IdealBubble(int, const StageTimes&) override { return 0; }
  void SetProfiler(Profiler*) override {}

  std::vector<Clock::time_point> begins;  // of iterations, on the host
  std::vector<Event> delays;  // each's first and last moment on the device

 private:
  void Delay() {
    for (int i = 0; i < 200; ++i)
      FillBytes(memory_.data(), i, memory_.bytes(), stream_);
  }
  TrainStage& stage_;
  Tensor memory_;
  Stream stream_;
};

struct Outcome {
  std::vector<nlohmann::json> lines;
  std::vector<uint8_t> weights;
  // Of a slow stage, in milliseconds.
  std::vector<double> between;  // iterations' beginnings on the host
  std::vector<double> times;    // as the metrics have them
  std::vector<double> delays;   // in front of each on the device
};

double Milliseconds(Clock::duration d) {
  return std::chrono::duration<double, std::milli>(d).count();
}

Outcome Train(const Backend& on, TrainerOptions options, bool slow = false) {
  const std::string folder = testing::TempDir() + "/run_ahead_test";
  std::filesystem::remove_all(folder);
  Allocator allocator(StreamOf(on)), host;
  auto model = MimoModel::Build(
      LlavaModelConfig(Tiny()), BuiltinModules(),
      {.allocator = &allocator, .dtype = on.dtype, .seed = 11});
  CHECK_OK(model.status());
  MimoStage stage(**model, allocator, {.capture = true});
  std::optional<SlowStage> slow_stage;
  if (slow) slow_stage.emplace(stage, allocator);
  Batches source(/*shapes=*/!slow);
  options.train.micro_batch_size = 2;
  options.train.global_batch_size = 4;
  options.optimizer.lr = 1e-2;
  options.logging.progress = false;
  options.logging.metrics = folder + "/metrics.jsonl";
  DistributedDataParallel parallel({{"model", stage.Parameters()}}, allocator);
  auto trainer = Trainer::Create(
      options, slow ? static_cast<TrainStage&>(*slow_stage) : stage, parallel,
      source, allocator);
  CHECK_OK(trainer.status());
  CHECK_OK((*trainer)->Run().status());
  Outcome run = {.lines = ReadMetrics(*options.logging.metrics)};
  for (const Parameter* p : stage.Parameters()) {
    const Tensor data = p->data.Clone(host);
    const uint8_t* bytes = static_cast<const uint8_t*>(data.data());
    run.weights.insert(run.weights.end(), bytes, bytes + data.bytes());
  }
  if (!slow) return run;
  const auto& delays = slow_stage->delays;
  for (size_t i = 0; i < delays.size(); i += 2)
    run.delays.push_back(1e3 * SecondsBetween(delays[i], delays[i + 1]));
  const auto& begins = slow_stage->begins;
  for (size_t i = 1; i < begins.size(); ++i)
    run.between.push_back(Milliseconds(begins[i] - begins[i - 1]));
  std::ifstream file(*options.logging.metrics);
  for (std::string line; std::getline(file, line);) {
    const auto json = nlohmann::json::parse(line);
    if (!json.contains("split")) run.times.push_back(json["iteration_time_ms"]);
  }
  return run;
}

class RunAheadTest : public BackendTest {};
MIMO_ON_BACKENDS(RunAheadTest);

TEST_P(RunAheadTest, IsBitwiseTheSame) {
  TrainerOptions options;
  options.train.train_iters = 30;
  options.train.eval_interval = 11;
  const Outcome wanted = Train(backend(), options);
  EXPECT_EQ(wanted.lines.size(), 32u);
  options.run_ahead = true;
  const Outcome ahead = Train(backend(), options);
  EXPECT_EQ(ahead.lines, wanted.lines);
  EXPECT_EQ(ahead.weights, wanted.weights);
}

class GpuRunAheadTest : public BackendTest {};
INSTANTIATE_TEST_SUITE_P(On, GpuRunAheadTest,
                         testing::Values(Backend{Device::kCuda,
                                                 DType::kFloat32}),
                         BackendName);

// The host enqueues two iterations after a wait for all, then one whenever the
// device has done one. Their times are the device's.
TEST_P(GpuRunAheadTest, TheHostWaitsForTheIterationBeforeAlone) {
  TrainerOptions options;
  options.run_ahead = true;
  options.train.train_iters = 8;
  options.train.eval_interval = 4;  // waits for all
  const Outcome run = Train(backend(), options, /*slow=*/true);
  ASSERT_EQ(run.between.size(), 7u);
  ASSERT_EQ(run.delays.size(), 8u);
  EXPECT_LT(run.between[4], run.delays[4] / 2);  // of 5 and 6
  EXPECT_GT(run.between[5], run.delays[4] / 2);
  EXPECT_GT(run.between[6], run.delays[5] / 2);
  ASSERT_EQ(run.times.size(), 8u);
  for (int i = 4; i < 8; ++i) {
    EXPECT_GT(run.times[i], 0.9 * run.delays[i]) << i;
    EXPECT_LT(run.times[i], 1.5 * run.delays[i]) << i;
  }
}

}  // namespace
}  // namespace mimo
