// A training process that is killed again and again, wherever it happens to be,
// ends as one that never was.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "mimo/train/stop_signal.h"
#include "mimo/train/toy_stage.h"
#include "mimo/train/trainer.h"

namespace mimo {
namespace {

constexpr int kIterations = 60;

std::string Folder(const std::string& name) {
  const std::string path = testing::TempDir() + "/trainer_kill_test/" + name;
  std::filesystem::remove_all(path);
  return path;
}

// The body of a training process; its exit code.
int TrainIn(const std::string& folder, int sleep_us) {
  TrainerOptions options;
  options.train.train_iters = kIterations;
  options.train.micro_batch_size = 2;
  options.train.global_batch_size = 4;
  options.optimizer.lr = 5e-2;
  options.checkpoint.save = options.checkpoint.load = folder + "/save";
  options.checkpoint.save_interval = 1;  // so that many kills hit a save
  options.checkpoint.keep = 2;
  options.logging.metrics = folder + "/metrics.jsonl";
  options.logging.progress = false;
  StopSignal signal;
  options.stop_requested = [&] { return signal.requested(); };
  Allocator allocator;
  ToyStage stage(allocator);
  stage.error = [&] {
    usleep(sleep_us);
    return absl::OkStatus();
  };
  DistributedDataParallel parallel({{"toy", stage.Parameters()}}, allocator);
  ToySource source(2, 5);
  auto trainer = Trainer::Create(options, stage, parallel, source, allocator);
  if (!trainer.ok()) {
    std::fprintf(stderr, "%s\n", trainer.status().ToString().c_str());
    return 2;
  }
  // Where each process took the run up.
  std::ofstream(folder + "/starts", std::ios::app)
      << (*trainer)->iteration() << std::endl;
  const auto result = (*trainer)->Run();
  if (!result.ok()) {
    std::fprintf(stderr, "%s\n", result.status().ToString().c_str());
    return 1;
  }
  return result->stopped ? 3 : 0;
}

pid_t Start(const std::string& folder, int sleep_us) {
  const pid_t child = fork();
  if (child == 0) _exit(TrainIn(folder, sleep_us));
  return child;
}

int Wait(pid_t child) {
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return status;
}

TEST(TrainerKill, AKilledRunEndsAsOneThatNeverWas) {
  const std::string straight = Folder("straight");
  ASSERT_EQ(Wait(Start(straight, 0)), 0);
  const auto wanted = ReadMetrics(straight + "/metrics.jsonl");
  ASSERT_EQ(wanted.size(), size_t{kIterations});

  const std::string killed = Folder("killed");
  std::mt19937 rng(std::random_device{}());
  int kills = 0;
  for (int round = 0; round < 12; ++round) {
    const pid_t child = Start(killed, 500);
    // On a slow machine too, some have begun to train.
    const auto lines = [&] {
      return ReadMetrics(killed + "/metrics.jsonl").size();
    };
    for (const size_t before = lines();
         round % 2 == 0 && lines() == before && before < kIterations;)
      usleep(1000);
    usleep(rng() % 60000);
    kill(child, SIGKILL);
    const int status = Wait(child);
    if (WIFSIGNALED(status)) {
      ++kills;
    } else {
      ASSERT_EQ(WEXITSTATUS(status), 0);  // it was done already
    }
  }
  EXPECT_GT(kills, 0);
  ASSERT_EQ(Wait(Start(killed, 0)), 0);
  std::ifstream file(killed + "/starts");
  const std::vector<int> starts(std::istream_iterator<int>(file), {});
  EXPECT_EQ(ReadMetrics(killed + "/metrics.jsonl"), wanted);
  EXPECT_TRUE(std::is_sorted(starts.begin(), starts.end()));
  EXPECT_GT(starts.back(), 0);
}

TEST(TrainerKill, ASignalSavesAndStops) {
  const std::string folder = Folder("signal");
  for (int signal : {SIGINT, SIGTERM}) {
    const pid_t child = Start(folder, 20000);
    // Its metrics say that it is past the first iterations of this run.
    const size_t before = ReadMetrics(folder + "/metrics.jsonl").size();
    while (ReadMetrics(folder + "/metrics.jsonl").size() < before + 2) {
      usleep(2000);
    }
    kill(child, signal);
    const int status = Wait(child);
    ASSERT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 3);
    EXPECT_LT(ReadMetrics(folder + "/metrics.jsonl").size(),
              size_t{kIterations});
  }
  ASSERT_EQ(Wait(Start(folder, 0)), 0);
  EXPECT_EQ(ReadMetrics(folder + "/metrics.jsonl").size(), size_t{kIterations});
}

}  // namespace
}  // namespace mimo
