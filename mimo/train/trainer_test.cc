#include "mimo/train/trainer.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "mimo/checkpoint/checkpoint.h"
#include "mimo/train/toy_stage.h"

namespace mimo {
namespace {

std::string Folder(const std::string& name) {
  const std::string path = testing::TempDir() + "/trainer_test/" + name;
  std::filesystem::remove_all(path);
  return path;
}

TrainerOptions Options(const std::string& folder) {
  TrainerOptions options;
  options.train.train_iters = 20;
  options.train.micro_batch_size = 2;
  options.train.global_batch_size = 6;
  options.optimizer.lr = 5e-2;
  options.optimizer.min_lr = 1e-3;
  options.optimizer.lr_warmup_iters = 3;
  options.optimizer.weight_decay = 0.1;
  options.checkpoint.save = folder + "/save";
  options.logging.metrics = folder + "/metrics.jsonl";
  options.logging.progress = false;
  return options;
}

// One run of a process: everything in it is new but what is on disk.
struct Process {
  explicit Process(TrainerOptions with)
      : options(std::move(with)),
        stage(allocator),
        source(options.train.micro_batch_size, 11),
        validation(options.train.micro_batch_size, 12) {
    options.out = open_memstream(&text, &size);
    options.validation = &validation;
  }
  ~Process() {
    std::fclose(options.out);
    std::free(text);
  }
  absl::StatusOr<TrainResult> Run() {
    MIMO_ASSIGN_OR_RETURN(
        auto trainer,
        Trainer::Create(options, stage, parallel, source, allocator));
    return trainer->Run();
  }
  std::string Output() {
    std::fflush(options.out);
    return std::string(text, size);
  }

  char* text = nullptr;
  size_t size = 0;
  TrainerOptions options;
  Allocator allocator;
  ToyStage stage;
  DistributedDataParallel parallel{{{"toy", stage.Parameters()}}, allocator};
  ToySource source, validation;
};

TEST(Trainer, LearnsAndWritesItsMetrics) {
  const std::string folder = Folder("learns");
  Process process(Options(folder));
  process.options.logging.progress = true;
  const auto result = process.Run();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(process.Output().find("first iteration done after 0."), 0);
  EXPECT_EQ(result->iteration, 20);
  EXPECT_EQ(result->consumed_samples, 120);
  EXPECT_FALSE(result->stopped);
  const auto lines = ReadMetrics(folder + "/metrics.jsonl");
  ASSERT_EQ(lines.size(), 20u);
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(lines[i]["iteration"], i + 1);
    EXPECT_EQ(lines[i]["consumed_samples"], 6 * (i + 1));
    EXPECT_EQ(lines[i]["learning_rate"].get<double>(),
              LearningRate(process.options.optimizer, 20, i));
    EXPECT_EQ(lines[i]["skipped_iterations"], 0);
    EXPECT_GT(lines[i]["grad_norm"].get<double>(), 0);
  }
  EXPECT_EQ(lines[19]["lm_loss"].get<double>(), result->lm_loss);
  EXPECT_LT(result->lm_loss, lines[0]["lm_loss"].get<double>() / 2);
}

TEST(Trainer, TheFirstLossIsTheMeanBeforeTheUpdate) {
  const std::string folder = Folder("first_loss");
  Process process(Options(folder));
  double sum = 0;
  int64_t labelled = 0;
  for (int i = 0; i < 3; ++i) {
    const MicroBatch batch = *process.source.Next();
    sum += *process.stage.Loss({batch});
    labelled += batch.LabelledTokens();
  }
  ASSERT_TRUE(process.source.Seek(0).ok());
  ASSERT_TRUE(process.Run().ok());
  EXPECT_EQ(ReadMetrics(folder + "/metrics.jsonl")[0]["lm_loss"].get<double>(),
            sum / labelled);
}

TEST(Trainer, MicroBatchesAddUpToOneBigBatch) {
  std::vector<std::vector<float>> weights;
  std::vector<std::vector<nlohmann::json>> lines;
  for (int64_t micro_batch_size : {6, 3, 2, 1}) {
    const std::string folder =
        Folder(absl::StrCat("micro_batches_", micro_batch_size));
    TrainerOptions options = Options(folder);
    options.train.micro_batch_size = micro_batch_size;
    Process process(options);
    ASSERT_TRUE(process.Run().ok());
    weights.push_back(process.stage.Weights());
    lines.push_back(ReadMetrics(folder + "/metrics.jsonl"));
  }
  for (size_t run = 1; run < weights.size(); ++run) {
    for (size_t i = 0; i < weights[0].size(); ++i) {
      // Only the gradient's sum is rounded otherwise, at most 6 times 2^-24 a
      // step. Adam divides by the gradient's size, so each of 20 updates (at
      // most 5e-2) is off by some 1e-6 of itself.
      EXPECT_NEAR(weights[run][i], weights[0][i], 1e-5);
    }
    for (size_t i = 0; i < lines[0].size(); ++i) {
      const double wanted = lines[0][i]["lm_loss"];
      EXPECT_NEAR(lines[run][i]["lm_loss"], wanted, 1e-5 * (1 + wanted));
    }
  }
}

TEST(Trainer, AResumedRunIsTheSameRun) {
  const std::string straight = Folder("straight");
  const std::string stopped = Folder("stopped");
  auto with = [](const std::string& folder) {
    TrainerOptions options = Options(folder);
    options.train.eval_interval = 5;
    options.train.eval_iters = 2;
    options.task_metrics = [] { return MetricValues{{"accuracy", 0.25}}; };
    return options;
  };
  Process whole(with(straight));
  ASSERT_TRUE(whole.Run().ok());

  for (int stop_at : {7, 15}) {
    std::filesystem::remove_all(stopped);
    TrainerOptions options = with(stopped);
    int asked = 0;
    options.stop_requested = [&] { return ++asked == stop_at; };
    {
      Process first(options);
      const auto result = first.Run();
      ASSERT_TRUE(result.ok()) << result.status();
      EXPECT_TRUE(result->stopped);
      EXPECT_EQ(result->iteration, stop_at);
      EXPECT_NE(first.Output().find(absl::StrCat("stopped after iteration ",
                                                 stop_at, " of 20")),
                std::string::npos);
    }
    options.stop_requested = nullptr;
    options.checkpoint.load = options.checkpoint.save;
    Process second(options);
    const auto result = second.Run();
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(second.stage.backwards, 3 * (20 - stop_at));
    EXPECT_EQ(second.stage.Weights(), whole.stage.Weights());
    EXPECT_EQ(ReadMetrics(stopped + "/metrics.jsonl"),
              ReadMetrics(straight + "/metrics.jsonl"));
    EXPECT_EQ(ReadMetrics(straight + "/metrics.jsonl").size(), 24u);

    // There is nothing left to do for a third.
    Process third(options);
    ASSERT_TRUE(third.Run().ok());
    EXPECT_EQ(third.stage.backwards, 0);
    EXPECT_EQ(third.stage.Weights(), whole.stage.Weights());
    EXPECT_EQ(ReadMetrics(stopped + "/metrics.jsonl"),
              ReadMetrics(straight + "/metrics.jsonl"));
  }
}

TEST(Trainer, LinesAfterTheCheckpointAreWrittenAgain) {
  const std::string straight = Folder("again_straight");
  Process whole(Options(straight));
  ASSERT_TRUE(whole.Run().ok());
  for (const bool run_ahead : {false, true}) {
    const std::string broken = Folder("again_broken");
    TrainerOptions options = Options(broken);
    options.run_ahead = run_ahead;
    options.checkpoint.save_interval = 4;
    {
      // Fails in iteration 11, after the checkpoint of 8 and the line of 10.
      Process first(options);
      auto trainer = Trainer::Create(first.options, first.stage, first.parallel,
                                     first.source, first.allocator);
      ASSERT_TRUE(trainer.ok());
      first.stage.error = [&] {
        return first.stage.backwards > 31 ? absl::InternalError("no more")
                                          : absl::OkStatus();
      };
      EXPECT_EQ((*trainer)->Run().status().message(), "no more");
    }
    EXPECT_EQ(ReadMetrics(broken + "/metrics.jsonl").size(), 10u);
    options.checkpoint.load = options.checkpoint.save;
    Process second(options);
    ASSERT_TRUE(second.Run().ok());
    EXPECT_EQ(second.stage.backwards, 3 * (20 - 8));
    EXPECT_EQ(second.stage.Weights(), whole.stage.Weights());
    EXPECT_EQ(ReadMetrics(broken + "/metrics.jsonl"),
              ReadMetrics(straight + "/metrics.jsonl"));
  }
}

TEST(Trainer, WhereItLoadsFrom) {
  // The same folder as `save`, however it is spelt: a fresh start is fine.
  const std::string folder = Folder("loads");
  TrainerOptions options = Options(folder);
  options.checkpoint.load = folder + "/./save/";
  options.train.train_iters = 2;
  ASSERT_TRUE(Process(options).Run().ok());
  // Any other folder must hold a checkpoint.
  options.checkpoint.load = folder + "/elsewhere";
  const absl::Status status = Process(options).Run().status();
  EXPECT_FALSE(status.ok());
  EXPECT_NE(status.message().find(folder + "/elsewhere"), std::string::npos)
      << status;
  // From one folder into another: the run goes on there.
  options.checkpoint.load = folder + "/save";
  options.checkpoint.save = folder + "/branch";
  options.train.train_iters = 3;
  const auto result = Process(options).Run();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->iteration, 3);
  EXPECT_EQ(result->consumed_samples, 18);
}

TEST(Trainer, StartsFromConvertedWeights) {
  const std::string folder = Folder("converted");
  TrainerOptions options = Options(folder);
  Process before(options);
  for (Parameter* parameter : before.stage.Parameters()) {
    for (float& x : parameter->data.span<float>()) x += 0.25f;
  }
  // As `mimo convert` writes it: no run, no optimizer.
  Checkpoint converted;
  converted.model = SlicesOf(before.stage.Parameters());
  ASSERT_TRUE(SaveCheckpoint(folder + "/converted", converted).ok());
  options.checkpoint.load = folder + "/converted";
  options.train.train_iters = 1;
  options.optimizer.lr = options.optimizer.min_lr = 0;
  Process after(options);
  const auto result = after.Run();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->iteration, 1);
  EXPECT_EQ(after.stage.Weights(), before.stage.Weights());
}

TEST(Trainer, KeepsTheCallersFiles) {
  const std::string folder = Folder("files");
  TrainerOptions options = Options(folder);
  options.checkpoint_files = {{"config.yaml", "a: 1\n"}};
  ASSERT_TRUE(Process(options).Run().ok());
  const auto saved = FindCheckpoint(folder + "/save");
  ASSERT_TRUE(saved.ok()) << saved.status();
  std::ifstream file(*saved + "/config.yaml");
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(file), {}), "a: 1\n");
}

TEST(Trainer, ABatchWithoutLabels) {
  const std::string folder = Folder("no_labels");
  TrainerOptions options = Options(folder);
  options.optimizer.weight_decay = 0;
  Process process(options);
  process.source.labelled = false;
  const std::vector<float> before = process.stage.Weights();
  const auto result = process.Run();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->lm_loss, 0);
  EXPECT_EQ(process.stage.Weights(), before);
  EXPECT_EQ(ReadMetrics(folder + "/metrics.jsonl")[19]["grad_norm"], 0);
}

TEST(Trainer, SkipsAnIterationThatIsNotFinite) {
  const std::string folder = Folder("not_finite");
  Process process(Options(folder));
  process.stage.factor = [&] {  // of a micro-batch of iteration 5
    return process.stage.backwards == 14
               ? std::numeric_limits<double>::quiet_NaN()
               : 1;
  };
  ASSERT_TRUE(process.Run().ok());
  EXPECT_NE(
      process.Output().find(
          "iteration 5: loss nan, gradient norm nan: no update (1 so far)"),
      std::string::npos)
      << process.Output();
  const auto lines = ReadMetrics(folder + "/metrics.jsonl");
  EXPECT_TRUE(lines[4]["lm_loss"].is_null());
  EXPECT_TRUE(lines[4]["grad_norm"].is_null());
  EXPECT_EQ(lines[3]["skipped_iterations"], 0);
  EXPECT_EQ(lines[4]["skipped_iterations"], 1);
  EXPECT_EQ(lines[19]["skipped_iterations"], 1);
  EXPECT_TRUE(lines[19]["lm_loss"].is_number());
}

TEST(Trainer, GivesUpWhenNothingIsFinite) {
  Process process(Options(Folder("gives_up")));
  process.stage.factor = [] { return std::numeric_limits<double>::infinity(); };
  const absl::Status status = process.Run().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_NE(status.message().find("iteration 10: loss inf"), std::string::npos)
      << status;
}

TEST(Trainer, LogsEveryFewIterations) {
  const std::string folder = Folder("log_interval");
  TrainerOptions options = Options(folder);
  options.logging.log_interval = 6;
  options.logging.tensorboard_dir = folder + "/tensorboard";
  options.train.eval_interval = 10;
  Process process(options);
  ASSERT_TRUE(process.Run().ok());
  std::vector<std::string> got;
  for (const auto& line : ReadMetrics(folder + "/metrics.jsonl")) {
    got.push_back(
        absl::StrCat(line["iteration"].get<int>(), line.value("split", "")));
  }
  EXPECT_EQ(got, (std::vector<std::string>{"6", "10validation", "12", "18",
                                           "20validation"}));
  EXPECT_FALSE(std::filesystem::is_empty(folder + "/tensorboard"));
}

TEST(Trainer, UserMistakes) {
  const std::string folder = Folder("mistakes");
  TrainerOptions options = Options(folder);
  options.train.global_batch_size = 5;
  EXPECT_EQ(Process(options).Run().status().message(),
            "global_batch_size: 5, wanted a multiple of micro_batch_size, 2");

  options = Options(folder);
  options.train.train_iters = 1;
  ASSERT_TRUE(Process(options).Run().ok());
  options.checkpoint.load = options.checkpoint.save;
  options.train.seed = 2;
  EXPECT_EQ(
      Process(options).Run().status().message(),
      "train.seed: 2, wanted 1234 as in " + folder + "/save/iter_0000001");

  // A file where the checkpoints should go.
  options = Options(folder);
  options.checkpoint.save = *options.logging.metrics;
  const absl::Status status = Process(options).Run().status();
  EXPECT_FALSE(status.ok());
  EXPECT_NE(status.message().find(*options.logging.metrics), std::string::npos)
      << status;

  Process frozen(Options(folder));
  for (Parameter* parameter : frozen.stage.Parameters()) {
    parameter->frozen = true;
  }
  EXPECT_EQ(frozen.Run().status().message(),
            "model: every parameter is frozen, wanted one to train");
}

TEST(Evaluate, IsTheMeanFromTheFirstSampleOn) {
  Allocator allocator;
  ToyStage stage(allocator);
  ToySource source(4, 3), again(1, 3);
  double sum = 0;
  int64_t labelled = 0;
  for (int i = 0; i < 12; ++i) {
    const MicroBatch batch = *again.Next();
    sum += *stage.Loss({batch});
    labelled += batch.LabelledTokens();
  }
  for (int time = 0; time < 2; ++time) {
    // The order of 12 sums in double differs.
    EXPECT_NEAR(*Evaluate(stage, source, 3, 1, nullptr, allocator),
                sum / labelled, 1e-12);
  }
  source.labelled = false;
  EXPECT_EQ(*Evaluate(stage, source, 3, 1, nullptr, allocator), 0);
}

}  // namespace
}  // namespace mimo
