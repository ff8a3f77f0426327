// A run is a function of its config: run twice, stopped and resumed, or killed
// again and again, it ends with the same metrics and the same weights.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "gtest/gtest.h"
#include "mimo/checkpoint/checkpoint.h"
#include "tests/testing/run_mimo.h"
#include "tests/testing/tiny_run.h"

namespace mimo {
namespace {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

struct Outcome {
  std::vector<nlohmann::json> metrics;
  std::string model, optimizer, state;  // bytes of the last checkpoint
  bool operator==(const Outcome&) const = default;
};

Outcome OutcomeOf(const std::string& folder) {
  const auto last = FindCheckpoint(folder + "/save");
  CHECK_OK(last.status());
  Outcome outcome = {Untimed(ReadMetrics(folder + "/metrics.jsonl")),
                     Read(*last + "/model.safetensors"),
                     Read(*last + "/optimizer.safetensors"),
                     Read(*last + "/state.json")};
  for (auto& line :
       Untimed(ReadMetrics(folder + "/metrics.jsonl", "validation"))) {
    outcome.metrics.push_back(line);
  }
  return outcome;
}

Outcome Train(const std::string& folder, const Words& overrides = {}) {
  const Ran ran = RunMimo(TinyTrain(folder, overrides));
  EXPECT_EQ(ran.code, 0) << ran.err;
  return OutcomeOf(folder);
}

// Metrics line by line: a difference is shown where it begins.
void ExpectSame(const Outcome& a, const Outcome& b) {
  ASSERT_EQ(a.metrics.size(), b.metrics.size());
  for (size_t i = 0; i < a.metrics.size(); ++i) {
    ASSERT_EQ(a.metrics[i].dump(), b.metrics[i].dump());
  }
  EXPECT_TRUE(a == b) << "other weights, optimizer or state";
}

TEST(Resume, SameSeedSameRun) {
  const Outcome first = Train(TestFolder("a"));
  ASSERT_EQ(first.metrics.size(), 6);
  ExpectSame(first, Train(TestFolder("b")));
  // However many threads make the batches.
  ExpectSame(first, Train(TestFolder("c"), {"data.num_workers=3"}));
  ExpectSame(first, Train(TestFolder("d"),
                          {"data.num_workers=0", "data.cache_images=true"}));
  EXPECT_FALSE(first == Train(TestFolder("e"), {"train.seed=1235"}));
}

TEST(Resume, StoppedAndResumedIsAsNeverStopped) {
  // 4 of 12 pictures an iteration: nine go round three times.
  const Words nine = {"train.train_iters=9", "train.eval_interval=2",
                      "train.eval_iters=1", "data.validation_fraction=0.2"};
  const Outcome straight = Train(TestFolder("straight"), nine);
  ASSERT_EQ(straight.metrics.size(), 9 + 4);
  for (const int64_t stop : {1, 4, 8}) {
    SCOPED_TRACE(stop);
    const std::string folder = TestFolder("stopped");
    Words words = nine;
    words[0] = absl::StrCat("train.train_iters=", stop);
    Train(folder, words);
    words[0] = nine[0];
    words.push_back(absl::StrCat("checkpoint.load=", folder, "/save"));
    ExpectSame(straight, Train(folder, words));

    // Into other folders: the first lines are not there.
    const std::string other = TestFolder("other");
    words.back() =
        absl::StrFormat("checkpoint.load=%s/save/iter_%07d", folder, stop);
    const Outcome rest = Train(other, words);
    EXPECT_TRUE(rest.model == straight.model);
    EXPECT_TRUE(rest.optimizer == straight.optimizer);
    ASSERT_EQ(rest.metrics.front()["iteration"], stop + 1);
    for (int64_t i = stop; i < 9; ++i) {
      EXPECT_EQ(rest.metrics[i - stop].dump(), straight.metrics[i].dump());
    }
  }
}

TEST(Resume, MicroBatchesOnlyRound) {
  const Words batch = {"train.micro_batch_size=4"};
  const Outcome whole = Train(TestFolder("whole"), batch);
  for (const char* micro :
       {"train.micro_batch_size=2", "train.micro_batch_size=1"}) {
    const Outcome parts = Train(TestFolder("parts"), {micro});
    ASSERT_EQ(parts.metrics.size(), whole.metrics.size());
    for (size_t i = 0; i < whole.metrics.size(); ++i) {
      // Sums of float32 in another order, and what AdamW makes of it later.
      for (const char* key : {"lm_loss", "grad_norm"}) {
        const double wanted = whole.metrics[i][key];
        EXPECT_NEAR(parts.metrics[i][key], wanted, 1e-4 * wanted)
            << key << " of line " << i;
      }
      EXPECT_EQ(parts.metrics[i]["consumed_samples"],
                whole.metrics[i]["consumed_samples"]);
    }
  }
}

pid_t Start(const Words& words) {
  const pid_t child = fork();
  if (child != 0) return child;
  std::vector<char*> argv = {const_cast<char*>("cli/mimo")};
  for (const std::string& word : words) {
    argv.push_back(const_cast<char*>(word.c_str()));
  }
  argv.push_back(nullptr);
  unsetenv("BUILD_WORKING_DIRECTORY");
  execv(argv[0], argv.data());
  _exit(127);
}

int64_t SavedIteration(const std::string& save) {
  const auto folder = FindCheckpoint(save);
  if (absl::IsNotFound(folder.status())) return 0;
  CHECK_OK(folder.status());  // what is there loads, whenever we look
  const auto state = LoadTrainState(*folder);
  // `keep` may have removed it since.
  return state.ok() ? state->iteration : SavedIteration(save);
}

TEST(Resume, KilledAgainAndAgainIsAsNeverKilled) {
  constexpr int64_t kIterations = 24;
  Words words = {absl::StrCat("train.train_iters=", kIterations)};
  const Outcome straight = Train(TestFolder("straight"), words);

  const std::string folder = TestFolder("killed");
  const std::string save = folder + "/save";
  words.insert(words.end(),
               {"checkpoint.load=" + save, "checkpoint.save_interval=1",
                "checkpoint.keep=2"});
  words = TinyTrain(folder, words);
  std::mt19937 random(5);
  int kills = 0;
  for (bool done = false; !done;) {
    ASSERT_LT(kills, 500);
    // Dies this many iterations on, and a little: in the midst of the next
    // iteration or of its save. 0: wherever it is then.
    const int64_t until = SavedIteration(save) + random() % 5;
    const int64_t extra_us = random() % 4000;
    const pid_t child = Start(words);
    ASSERT_GT(child, 0);
    int status = 0;
    while (!done && SavedIteration(save) < until) {
      done = waitpid(child, &status, WNOHANG) == child;
      usleep(100);
    }
    if (!done) {
      usleep(extra_us);
      kill(child, SIGKILL);
      ASSERT_EQ(waitpid(child, &status, 0), child);
      done = WIFEXITED(status);  // it was quicker
    }
    if (done) {
      ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
    } else {
      ++kills;
      ASSERT_EQ(WTERMSIG(status), SIGKILL);
    }
  }
  EXPECT_GE(kills, kIterations / 5 - 1);
  ExpectSame(straight, OutcomeOf(folder));
  // Nothing of the dead is left: two checkpoints and `latest`.
  int64_t entries = 0;
  for (const auto& entry : fs::directory_iterator(save)) {
    entries += !entry.path().empty();
  }
  EXPECT_EQ(entries, 3);
}

}  // namespace
}  // namespace mimo
