// A run is a function of its config: run twice, stopped and resumed, or killed
// again and again, it ends with the same metrics and the same weights; on every
// backend.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <bit>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "gtest/gtest.h"
#include "kernels/testing/backend.h"
#include "mimo/checkpoint/checkpoint.h"
#include "nlohmann/json.hpp"
#include "tests/golden/tolerance.h"
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

// Where and in what dtype a run is.
Words On(const Backend& backend) {
  return {absl::StrCat("train.device=",
                       backend.device == Device::kCpu ? "cpu" : "cuda"),
          absl::StrCat("train.dtype=", Name(backend.dtype))};
}

Outcome Train(const Backend& backend, const std::string& folder,
              const Words& overrides = {}) {
  Words words = On(backend);
  words.insert(words.end(), overrides.begin(), overrides.end());
  const Ran ran = RunMimo(TinyTrain(folder, words));
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

class Resume : public BackendTest {};
MIMO_ON_BACKENDS(Resume);

TEST_P(Resume, SameSeedSameRun) {
  const Outcome first = Train(backend(), TestFolder("a"));
  ASSERT_EQ(first.metrics.size(), 6);
  ExpectSame(first, Train(backend(), TestFolder("b")));
  // However many threads make the batches.
  ExpectSame(first, Train(backend(), TestFolder("c"), {"data.num_workers=3"}));
  ExpectSame(first, Train(backend(), TestFolder("d"),
                          {"data.num_workers=0", "data.cache_images=true"}));
  EXPECT_FALSE(first == Train(backend(), TestFolder("e"), {"train.seed=1235"}));
}

TEST_P(Resume, StoppedAndResumedIsAsNeverStopped) {
  // 4 of 12 pictures an iteration: nine go round three times.
  const Words nine = {"train.train_iters=9", "train.eval_interval=2",
                      "train.eval_iters=1", "data.validation_fraction=0.2"};
  const Outcome straight = Train(backend(), TestFolder("straight"), nine);
  ASSERT_EQ(straight.metrics.size(), 9 + 4);
  for (const int64_t stop : {1, 4, 8}) {
    SCOPED_TRACE(stop);
    const std::string folder = TestFolder("stopped");
    Words words = nine;
    words[0] = absl::StrCat("train.train_iters=", stop);
    Train(backend(), folder, words);
    words[0] = nine[0];
    words.push_back(absl::StrCat("checkpoint.load=", folder, "/save"));
    ExpectSame(straight, Train(backend(), folder, words));

    // Into other folders: the first lines are not there.
    const std::string other = TestFolder("other");
    words.back() =
        absl::StrFormat("checkpoint.load=%s/save/iter_%07d", folder, stop);
    const Outcome rest = Train(backend(), other, words);
    EXPECT_TRUE(rest.model == straight.model);
    EXPECT_TRUE(rest.optimizer == straight.optimizer);
    ASSERT_EQ(rest.metrics.front()["iteration"], stop + 1);
    for (int64_t i = stop; i < 9; ++i) {
      EXPECT_EQ(rest.metrics[i - stop].dump(), straight.metrics[i].dump());
    }
  }
}

TEST_P(Resume, MicroBatchesOnlyRound) {
  const Words batch = {"train.micro_batch_size=4"};
  // float32: sums in another order, and what AdamW makes of it later. bfloat16:
  // some roundings fall otherwise, in gradients of three layers.
  const double tolerance = backend().dtype == DType::kFloat32
                               ? 1e-4
                               : RoundingError(backend().dtype, 3, 3);
  const Outcome whole = Train(backend(), TestFolder("whole"), batch);
  for (const char* micro :
       {"train.micro_batch_size=2", "train.micro_batch_size=1"}) {
    const Outcome parts = Train(backend(), TestFolder("parts"), {micro});
    ASSERT_EQ(parts.metrics.size(), whole.metrics.size());
    for (size_t i = 0; i < whole.metrics.size(); ++i) {
      for (const char* key : {"lm_loss", "grad_norm"}) {
        const double wanted = whole.metrics[i][key];
        EXPECT_NEAR(parts.metrics[i][key], wanted, tolerance * wanted)
            << key << " of line " << i;
      }
      EXPECT_EQ(parts.metrics[i]["consumed_samples"],
                whole.metrics[i]["consumed_samples"]);
    }
  }
}

// Three iterations here, three on the CPU, three here.
TEST_P(Resume, OnAnotherDevice) {
  if (backend().dtype != DType::kFloat32) {
    GTEST_SKIP() << "the CPU does not train in bfloat16";
  }
  Words words = {"train.train_iters=9"};
  const Outcome straight = Train(backend(), TestFolder("straight"), words);
  const std::string folder = TestFolder("moved");
  words.push_back(absl::StrCat("checkpoint.load=", folder, "/save"));
  Outcome moved;
  for (const auto& [on, until] :
       {std::pair(backend(), 3), {Backends()[0], 6}, {backend(), 9}}) {
    words[0] = absl::StrCat("train.train_iters=", until);
    moved = Train(on, folder, words);
    ASSERT_EQ(moved.metrics.size(), until);
  }
  for (size_t i = 0; i < 9; ++i) {
    for (const char* key : {"lm_loss", "grad_norm"}) {
      const double wanted = straight.metrics[i][key];
      EXPECT_NEAR(moved.metrics[i][key], wanted, 1e-4 * wanted)
          << key << " of line " << i;
    }
  }
}

// A bfloat16 run's weights are what its masters round to, ties away from zero.
TEST_P(Resume, KeepsTheMasters) {
  const std::string folder = TestFolder("run");
  Train(backend(), folder);
  const auto last = FindCheckpoint(folder + "/save");
  ASSERT_TRUE(last.ok()) << last.status();
  const auto weights = ReadArrays(*last + "/model.safetensors");
  const auto state = ReadArrays(*last + "/optimizer.safetensors");
  int64_t masters = 0;
  for (const auto& [name, array] : state) {
    if (!absl::StartsWith(name, "master.")) continue;
    ++masters;
    const auto& weight = weights.at(name.substr(std::strlen("master."))).values;
    EXPECT_NE(array.values, weight) << name;
    for (size_t i = 0; i < weight.size(); ++i) {
      const uint32_t bits =
          std::bit_cast<uint32_t>(static_cast<float>(array.values[i])) + 0x8000;
      ASSERT_EQ(std::bit_cast<float>(bits & 0xffff0000), weight[i])
          << name << " at " << i;
    }
  }
  EXPECT_EQ(masters,
            backend().dtype == DType::kBFloat16 ? state.size() / 3 : 0);
}

// The recipe is how a module multiplies, not what its weights are.
TEST_P(Resume, ACheckpointDoesNotKnowOfQuantization) {
  const std::string recipe = "model.quantization={language: fp8}";
  Words words = {"train.train_iters=6", recipe};
  const Outcome straight = Train(backend(), TestFolder("straight"), words);
  const std::string folder = TestFolder("stopped");
  words[0] = "train.train_iters=3";
  Train(backend(), folder, words);
  words[0] = "train.train_iters=6";
  words.push_back(absl::StrCat("checkpoint.load=", folder, "/save"));
  ExpectSame(straight, Train(backend(), folder, words));
  // The same tensors as without, of other values.
  const Outcome plain = Train(backend(), TestFolder("plain"));
  const auto tensors = [](const std::string& file) {
    nlohmann::json header =
        nlohmann::json::parse(file.substr(8, file.find("}}") + 2 - 8));
    header.erase("__metadata__");  // checksums of the values
    return header;
  };
  EXPECT_EQ(tensors(straight.model), tensors(plain.model));
  EXPECT_EQ(straight.model.size(), plain.model.size());
  EXPECT_FALSE(straight.model == plain.model);
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

// Where a run computes is of no matter to its files.
TEST(Killed, AgainAndAgainIsAsNeverKilled) {
  constexpr int64_t kIterations = 24;
  Words words = {absl::StrCat("train.train_iters=", kIterations)};
  const Backend cpu = Backends()[0];
  const Outcome straight = Train(cpu, TestFolder("straight"), words);

  const std::string folder = TestFolder("killed");
  const std::string save = folder + "/save";
  words.insert(words.end(),
               {"checkpoint.load=" + save, "checkpoint.save_interval=1",
                "checkpoint.keep=2"});
  for (const std::string& word : On(cpu)) words.push_back(word);
  words = TinyTrain(folder, words);
  std::mt19937 random(5);
  int kills = 0;
  int64_t begun = 0;  // iterations saved before the last start
  for (bool done = false; !done;) {
    ASSERT_LT(kills, 500);
    // Dies this many iterations on, and a little: in the midst of the next
    // iteration or of its save. 0: wherever it is then.
    begun = SavedIteration(save);
    const int64_t until = begun + random() % 5;
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
  // Nothing of the dead is left: two checkpoints and `latest`. What dies in the
  // midst of the last save has no later one to remove a third checkpoint.
  int64_t entries = 0;
  for (const auto& entry : fs::directory_iterator(save)) {
    entries += !entry.path().empty();
  }
  EXPECT_GE(entries, 3);
  EXPECT_LE(entries, begun < kIterations ? 3 : 4);
}

}  // namespace
}  // namespace mimo
