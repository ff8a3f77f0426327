// Trainers of several ranks, threads with a toy stage each: together they are
// one trainer.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "comm/inproc/inproc.h"
#include "gtest/gtest.h"
#include "kernels/base/status_macros.h"
#include "mimo/checkpoint/checkpoint.h"
#include "mimo/train/toy_stage.h"
#include "mimo/train/trainer.h"

namespace mimo {
namespace {

using Weights = std::vector<float>;

std::string Folder(const std::string& name) {
  const std::string path = testing::TempDir() + "/trainer_ranks_test/" + name;
  std::filesystem::remove_all(path);
  std::filesystem::create_directories(path);
  return path;
}

TrainerOptions Options(const std::string& folder) {
  TrainerOptions options;
  options.train.train_iters = 20;
  options.train.global_batch_size = 12;
  options.train.check_replicas_interval = 1;
  options.optimizer.lr = 5e-2;
  options.optimizer.lr_warmup_iters = 3;
  options.optimizer.weight_decay = 0.1;
  options.checkpoint.save = folder + "/save";
  options.logging.metrics = folder + "/metrics.jsonl";
  options.logging.progress = false;
  return options;
}

struct Outcome {
  std::vector<absl::Status> statuses;  // of each rank
  std::vector<Weights> weights;
  std::vector<TrainResult> results;
  std::string output;

  absl::Status status() const {
    for (const absl::Status& status : statuses) MIMO_RETURN_IF_ERROR(status);
    return absl::OkStatus();
  }
};

using Tweak = std::function<void(int rank, TrainerOptions&, ToyStage&)>;

Outcome Train(int ranks, const TrainerOptions& with, const Tweak& tweak = {}) {
  Outcome run;
  run.weights.resize(ranks);
  run.results.resize(ranks);
  char* text = nullptr;
  size_t size = 0;
  std::FILE* const out = open_memstream(&text, &size);
  run.statuses = RunRanks(ranks, [&](Communicator& world) -> absl::Status {
    TrainerOptions options = with;
    options.world = &world;
    options.data_parallel_size = ranks;
    options.out = out;
    Allocator allocator;
    ToyStage stage(allocator);
    const int rank = world.rank();
    if (tweak) tweak(rank, options, stage);
    DistributedDataParallel parallel({{"toy", stage.Parameters(), &world}},
                                     allocator);
    const int64_t micro = options.train.micro_batch_size;
    ToySource source(micro, 11, {rank, ranks});
    ToySource validation(micro, 12, {rank, ranks});
    options.validation = &validation;
    MIMO_ASSIGN_OR_RETURN(
        const auto trainer,
        Trainer::Create(options, stage, parallel, source, allocator));
    MIMO_ASSIGN_OR_RETURN(run.results[rank], trainer->Run());
    run.weights[rank] = stage.Weights();
    return absl::OkStatus();
  });
  std::fclose(out);
  run.output = std::string(text, size);
  std::free(text);
  return run;
}

// Only the order of sums of at most 12 gradients differs; see trainer_test.
void ExpectNear(const Weights& got, const Weights& wanted) {
  ASSERT_EQ(got.size(), wanted.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], wanted[i], 1e-5);
}

void ExpectNear(const std::vector<nlohmann::json>& got,
                const std::vector<nlohmann::json>& wanted) {
  ASSERT_EQ(got.size(), wanted.size());
  for (size_t i = 0; i < got.size(); ++i) {
    for (const auto& [name, value] : wanted[i].items()) {
      ASSERT_TRUE(got[i].contains(name)) << name;
      if (value.is_string()) continue;
      const double v = value.get<double>();
      EXPECT_NEAR(got[i][name].get<double>(), v, 1e-5 * (1 + std::fabs(v)))
          << name << " of line " << i;
    }
  }
}

TEST(TrainerRanks, AreOneTrainer) {
  const std::string one = Folder("one");
  TrainerOptions options = Options(one);
  options.train.micro_batch_size = 2;
  options.train.eval_interval = 7;
  options.train.eval_iters = 2;
  const Outcome alone = Train(1, options);
  ASSERT_TRUE(alone.status().ok()) << alone.status();
  const auto wanted = ReadMetrics(one + "/metrics.jsonl");
  ASSERT_EQ(wanted.size(), 22u);
  for (const int ranks : {2, 3, 4}) {
    const int64_t most = 12 / ranks;
    for (const int64_t micro : {int64_t{1}, most}) {
      std::vector<Outcome> runs;
      std::vector<std::vector<nlohmann::json>> lines;
      for (const char* time : {"first", "second"}) {
        const std::string folder = Folder(absl::StrCat(ranks, micro, time));
        TrainerOptions same = Options(folder);
        same.train.micro_batch_size = micro;
        same.train.eval_interval = 7;
        same.train.eval_iters = 2;
        runs.push_back(Train(ranks, same));
        ASSERT_TRUE(runs.back().status().ok()) << runs.back().status();
        lines.push_back(ReadMetrics(folder + "/metrics.jsonl"));
      }
      ExpectNear(lines[0], wanted);
      ExpectNear(runs[0].weights[0], alone.weights[0]);
      EXPECT_EQ(runs[0].results[0].consumed_samples, 240);
      EXPECT_EQ(lines[0], lines[1]);
      EXPECT_EQ(runs[0].weights, runs[1].weights);
      for (const Weights& weights : runs[0].weights)
        EXPECT_EQ(weights, runs[0].weights[0]);
    }
  }
}

TEST(TrainerRanks, MeasureTheTaskTogether) {
  TrainerOptions options = Options(Folder("task"));
  options.train.eval_interval = 10;
  std::vector<int> measured(3);
  const Outcome run = Train(3, options, [&](int rank, auto& own, auto&) {
    own.task_metrics = [&, rank] {
      ++measured[rank];
      return MetricValues{{"accuracy", 0.25}};
    };
  });
  ASSERT_TRUE(run.status().ok()) << run.status();
  EXPECT_EQ(measured, std::vector<int>(3, 2));
}

// Saved by `from` ranks after 9 iterations, gone on with by `to`.
TEST(TrainerRanks, AnyNumberOfRanksGoesOn) {
  const std::string straight = Folder("straight");
  TrainerOptions options = Options(straight);
  std::map<int, Weights> whole;
  for (const int ranks : {1, 2, 4})
    whole[ranks] = Train(ranks, options).weights[0];
  const auto wanted = ReadMetrics(straight + "/metrics.jsonl");
  for (const int from : {1, 2, 4}) {
    for (const int to : {1, 2, 3, 4}) {
      const std::string folder = Folder(absl::StrCat(from, "_to_", to));
      TrainerOptions first = Options(folder);
      int asked = 0;
      const Outcome stopped = Train(from, first, [&](int rank, auto& o, auto&) {
        // Only the last rank is asked to.
        if (rank == from - 1) o.stop_requested = [&] { return ++asked == 9; };
      });
      ASSERT_TRUE(stopped.status().ok()) << stopped.status();
      for (const TrainResult& result : stopped.results) {
        EXPECT_TRUE(result.stopped);
        EXPECT_EQ(result.iteration, 9);
      }
      TrainerOptions second = Options(folder);
      second.checkpoint.load = second.checkpoint.save;
      const Outcome resumed = Train(to, second);
      ASSERT_TRUE(resumed.status().ok()) << resumed.status();
      ExpectNear(resumed.weights[0], whole.at(1));
      const auto lines = ReadMetrics(folder + "/metrics.jsonl");
      ExpectNear(lines, wanted);
      if (from == to) {
        EXPECT_EQ(resumed.weights[0], whole.at(to));
      }
    }
  }
}

// With a loss that is not finite on one rank, validation and saves in between,
// and a stop: the same files, weights and ranks' agreement, whether numbers are
// waited for at once or an iteration later.
TEST(TrainerRanks, RunningAheadIsTheSameRun) {
  std::vector<std::vector<nlohmann::json>> lines;
  std::vector<Weights> weights;
  for (const bool run_ahead : {false, true}) {
    const std::string folder = Folder(absl::StrCat("ahead", run_ahead));
    TrainerOptions options = Options(folder);
    options.run_ahead = run_ahead;
    options.train.check_replicas_interval = 9;
    options.train.eval_interval = 7;
    options.train.eval_iters = 2;
    options.checkpoint.save_interval = 6;
    int calls = 0, asked = 0;
    const Outcome stopped =
        Train(3, options, [&](int rank, auto& o, ToyStage& stage) {
          // In iterations 5 and 12 of 4 micro-batches each.
          if (rank == 1) {
            stage.factor = [&] {
              ++calls;
              return calls == 18 || calls == 45 ? std::nan("") : 1;
            };
          }
          if (rank == 2) o.stop_requested = [&] { return ++asked == 15; };
        });
    ASSERT_TRUE(stopped.status().ok()) << stopped.status();
    for (const TrainResult& result : stopped.results) {
      EXPECT_TRUE(result.stopped);
      EXPECT_EQ(result.iteration, run_ahead ? 16 : 15);
      EXPECT_EQ(result.consumed_samples, 12 * result.iteration);
    }
    options.checkpoint.load = options.checkpoint.save;
    const Outcome resumed = Train(3, options);
    ASSERT_TRUE(resumed.status().ok()) << resumed.status();
    for (const Weights& w : resumed.weights) EXPECT_EQ(w, resumed.weights[0]);
    weights.push_back(resumed.weights[0]);
    lines.push_back(ReadMetrics(folder + "/metrics.jsonl"));
  }
  EXPECT_EQ(lines[0].size(), 22u);
  EXPECT_EQ(lines[0].back()["skipped_iterations"], 2);
  EXPECT_EQ(lines[0], lines[1]);
  EXPECT_EQ(weights[0], weights[1]);
}

// How many iterations have been waited for when each one is enqueued.
TEST(TrainerRanks, RunOneIterationAheadButOfASave) {
  for (const bool run_ahead : {false, true}) {
    const std::string folder = Folder("lines");
    TrainerOptions options = Options(folder);
    options.run_ahead = run_ahead;
    options.train.check_replicas_interval = 0;
    options.checkpoint.save_interval = 8;
    std::vector<int64_t> got, wanted;
    const Outcome run = Train(2, options, [&](int rank, auto&, auto& stage) {
      if (rank > 0) return;
      stage.error = [&] {
        if (stage.backwards % 6 == 1)
          got.push_back(ReadMetrics(folder + "/metrics.jsonl").size());
        return absl::OkStatus();
      };
    });
    ASSERT_TRUE(run.status().ok()) << run.status();
    for (int64_t i = 0; i < 20; ++i)
      wanted.push_back(run_ahead && i % 8 != 0 ? i - 1 : i);
    EXPECT_EQ(got, wanted);
    EXPECT_EQ(ReadMetrics(folder + "/metrics.jsonl").size(), 20u);
  }
}

// In order, to the last micro-batch of the run, whatever lies between.
TEST(TrainerRanks, ReadAheadAsFarAsTheStageAsks) {
  std::vector<Weights> weights;
  for (const int ahead : {0, 2, 13}) {
    TrainerOptions options = Options(Folder("reads_ahead"));
    options.train.eval_interval = 5;
    options.checkpoint.load = options.checkpoint.save;
    int iteration = 0;
    for (const int end : {9, 20}) {
      const Outcome run = Train(2, options, [&](int rank, auto& o, auto& at) {
        at.run_ahead = ahead;
        if (rank > 0) return;
        o.stop_requested = [&] {
          EXPECT_EQ(at.announced.size(),
                    std::min(ahead, 6 * (20 - ++iteration)));
          return iteration == 9;
        };
      });
      ASSERT_TRUE(run.status().ok()) << run.status();
      EXPECT_EQ(iteration, end);
      weights.push_back(run.weights[0]);
    }
    EXPECT_EQ(weights.back(), weights[1]);
  }
}

TEST(TrainerRanks, AllGiveUpAtTheSameIteration) {
  for (const bool run_ahead : {false, true}) {
    TrainerOptions options = Options(Folder("gives_up"));
    options.run_ahead = run_ahead;
    options.train.check_replicas_interval = 0;
    const Outcome run = Train(3, options, [](int rank, auto&, auto& stage) {
      if (rank == 1) stage.factor = [] { return std::nan(""); };
    });
    for (const absl::Status& status : run.statuses) {
      EXPECT_TRUE(absl::StrContains(status.message(), "iteration 10: loss nan"))
          << status;
    }
  }
}

TEST(TrainerRanks, OneBadLossSkipsOnAllRanks) {
  for (const double bad :
       {std::nan(""), std::numeric_limits<double>::infinity()}) {
    const std::string folder = Folder("bad");
    int calls = 0;
    const Outcome run =
        Train(3, Options(folder), [&](int rank, auto&, ToyStage& stage) {
          // In iteration 5 of 4 micro-batches each.
          if (rank == 1) stage.factor = [&] { return ++calls == 18 ? bad : 1; };
        });
    ASSERT_TRUE(run.status().ok()) << run.status();
    const auto lines = ReadMetrics(folder + "/metrics.jsonl");
    ASSERT_EQ(lines.size(), 20u);
    for (int i = 0; i < 20; ++i) {
      EXPECT_EQ(lines[i]["skipped_iterations"], i >= 4 ? 1 : 0);
      EXPECT_EQ(lines[i]["grad_norm"].is_null(), i == 4);
    }
    for (const Weights& weights : run.weights)
      EXPECT_EQ(weights, run.weights[0]);
    EXPECT_TRUE(absl::StrContains(run.output, "no update (1 so far)"));
  }
}

// A gradient of one rank alone overflows: the norm's sum tells all.
TEST(TrainerRanks, OneBadGradientSkipsOnAllRanks) {
  const std::string folder = Folder("bad_gradient");
  const Outcome run =
      Train(3, Options(folder), [](int rank, auto& o, auto& stage) {
        o.train.train_iters = 2;
        // The loss is a double.
        if (rank == 2) stage.factor = [] { return 1e60; };
        o.train.check_replicas_interval = 0;
      });
  ASSERT_TRUE(run.status().ok()) << run.status();
  const auto lines = ReadMetrics(folder + "/metrics.jsonl");
  EXPECT_TRUE(lines[0]["grad_norm"].is_null()) << lines[0];
  for (const TrainResult& result : run.results) EXPECT_EQ(result.iteration, 2);
}

TEST(TrainerRanks, ARankThatFailsEndsAll) {
  const Outcome run =
      Train(3, Options(Folder("fails")), [](int rank, auto&, ToyStage& stage) {
        if (rank == 1) {
          stage.error = [&stage] {
            return stage.backwards > 6 ? absl::InternalError("no more")
                                       : absl::OkStatus();
          };
        }
      });
  EXPECT_EQ(run.statuses[1].message(), "no more");
  for (const int other : {0, 2}) {
    EXPECT_TRUE(absl::StrContains(run.statuses[other].message(),
                                  "rank 1 failed: no more"))
        << run.statuses[other];
  }
}

TEST(TrainerRanks, ReplicasThatDifferAreFound) {
  const Outcome run =
      Train(2, Options(Folder("differ")), [](int rank, auto&, ToyStage& stage) {
        Tensor frozen = stage.Parameters()[1]->data;
        if (rank == 1) frozen.span<float>()[2] += 1e-6f;
      });
  EXPECT_TRUE(absl::StrContains(run.statuses[0].message(),
                                "toy.frozen: replicas 0 and 1 of group world"))
      << run.statuses[0];
}

TEST(TrainerRanks, ModulesHaveRatesOfTheirOwn) {
  const std::string folder = Folder("modules");
  const Outcome still = Train(2, Options(folder), [](int, auto& o, auto&) {
    o.optimizer.modules["toy"].lr_mult = 0;
  });
  ASSERT_TRUE(still.status().ok()) << still.status();
  Allocator allocator;
  EXPECT_EQ(still.weights[0], ToyStage(allocator).Weights());
}

TEST(TrainerRanks, ABatchThatCannotBeShared) {
  const Outcome run = Train(5, Options(Folder("shared")));
  EXPECT_EQ(run.status().message(),
            "train.global_batch_size: 12, wanted a multiple of "
            "micro_batch_size 1 x data_parallel_size 5");
}

}  // namespace
}  // namespace mimo
