// A save that is stopped anywhere leaves a folder that loads: killed before and
// after every system call, and out of space at every file.
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>

#include "absl/log/check.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "mimo/checkpoint/checkpoint.h"
#include "mimo/checkpoint/safetensors.h"

namespace mimo {
namespace {

namespace fs = std::filesystem;

Allocator& allocator() {
  static Allocator* allocator = new Allocator;
  return *allocator;
}

// Hundreds of saves, each synced: in memory where there is such a place.
std::string Folder(const std::string& name) {
  const std::string folder = absl::StrCat(
      access("/dev/shm", W_OK) == 0 ? "/dev/shm" : testing::TempDir(), "/mimo_",
      getpid(), "_", name);
  fs::remove_all(folder);
  return folder;
}

// All values are `value`.
Checkpoint Make(int64_t iteration, float value) {
  auto filled = [&](Shape shape) {
    Tensor tensor(allocator(), shape, DType::kFloat32);
    for (float& x : tensor.span<float>()) x = value;
    return tensor;
  };
  Checkpoint checkpoint;
  checkpoint.state.iteration = iteration;
  checkpoint.state.seed = static_cast<int64_t>(value);
  checkpoint.model = Whole({{"a", filled({700})}, {"b", filled({3})}});
  checkpoint.optimizer = Whole({{"exp_avg.a", filled({900})}});
  checkpoint.files = {{"config.yaml", absl::StrCat(value)}};
  return checkpoint;
}

// The value of the whole checkpoint that is found there.
float LoadedValue(const std::string& folder) {
  const auto found = FindCheckpoint(folder);
  EXPECT_TRUE(found.ok()) << found.status();
  if (!found.ok()) return -1;
  const auto state = LoadTrainState(*found);
  EXPECT_TRUE(state.ok()) << state.status();
  if (!state.ok()) return -1;
  const float value = state->seed;
  Checkpoint got = Make(0, NAN);
  EXPECT_TRUE(LoadSlices(*found, "model", got.model).ok());
  EXPECT_TRUE(LoadSlices(*found, "optimizer", got.optimizer).ok());
  for (const SliceMap* map : {&got.model, &got.optimizer}) {
    for (const auto& [name, slice] : *map) {
      for (float x : slice.data.span<float>()) EXPECT_EQ(x, value) << name;
    }
  }
  EXPECT_TRUE(fs::exists(*found + "/config.yaml"));
  return value;
}

int64_t Temporaries(const std::string& folder) {
  int64_t count = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    count += absl::StartsWith(entry.path().filename().string(), ".tmp_");
  }
  return count;
}

enum class Ended { kKilled, kDone, kNoTrace };

// Saves in a process that is killed at its `stop`th stop at a system call.
Ended SaveAndKill(const std::string& folder, const Checkpoint& checkpoint,
                  int64_t keep, int stop) {
  const pid_t child = fork();
  if (child == 0) {
    if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(77);
    raise(SIGSTOP);
    _exit(SaveCheckpoint(folder, checkpoint, keep).ok() ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFEXITED(status)) return Ended::kNoTrace;
  for (int i = 0; i < stop; ++i) {
    CHECK_EQ(ptrace(PTRACE_SYSCALL, child, nullptr, nullptr), 0);
    waitpid(child, &status, 0);
    if (WIFEXITED(status)) {
      EXPECT_EQ(WEXITSTATUS(status), 0);
      return Ended::kDone;
    }
  }
  kill(child, SIGKILL);
  waitpid(child, &status, 0);
  return Ended::kKilled;
}

class CheckpointKill : public testing::TestWithParam<int> {};

// The second save: of a later iteration, of the same one again, and with older
// ones to remove.
TEST_P(CheckpointKill, AtEverySystemCall) {
  const int64_t second = GetParam() == 1 ? 5 : 6;
  const int64_t keep = GetParam() == 2 ? 1 : 0;
  int old_found = 0, new_found = 0;
  for (int stop = 1;; ++stop) {
    const std::string folder = Folder(absl::StrCat("kill", GetParam()));
    ASSERT_TRUE(SaveCheckpoint(folder, Make(4, 4)).ok());
    ASSERT_TRUE(SaveCheckpoint(folder, Make(5, 5)).ok());
    const Ended ended = SaveAndKill(folder, Make(second, 6), keep, stop);
    if (ended == Ended::kNoTrace) GTEST_SKIP() << "no ptrace here";
    const float value = LoadedValue(folder);
    ASSERT_TRUE(value == 5 || value == 6) << value << " at stop " << stop;
    (value == 5 ? old_found : new_found) += 1;
    // The next save works and clears up.
    if (stop % 8 == 0) {
      ASSERT_TRUE(SaveCheckpoint(folder, Make(7, 7)).ok());
      ASSERT_EQ(LoadedValue(folder), 7);
      ASSERT_EQ(Temporaries(folder), 0);
    }
    if (ended == Ended::kDone) break;
    ASSERT_FALSE(HasFailure()) << "at stop " << stop;
  }
  fs::remove_all(Folder(absl::StrCat("kill", GetParam())));
  // Both sides of the one moment at which the new one counts.
  EXPECT_GT(old_found, 20);
  EXPECT_GT(new_found, 2);
}

INSTANTIATE_TEST_SUITE_P(Saves, CheckpointKill, testing::Values(0, 1, 2));

TEST(CheckpointDisk, FullAtEveryFile) {
  const std::string folder = Folder("full");
  ASSERT_TRUE(SaveCheckpoint(folder, Make(5, 5)).ok());
  int failed = 0;
  // A limit on a file's size stands for a disk that fills up: config.yaml is
  // the smallest file, optimizer.safetensors the largest.
  for (int64_t limit = 0; limit < 4096; limit += limit < 300 ? 7 : 150) {
    const pid_t child = fork();
    if (child == 0) {
      signal(SIGXFSZ, SIG_IGN);
      const rlimit sizes = {static_cast<rlim_t>(limit),
                            static_cast<rlim_t>(limit)};
      setrlimit(RLIMIT_FSIZE, &sizes);
      _exit(static_cast<int>(SaveCheckpoint(folder, Make(6, 6)).code()));
    }
    int status = 0;
    waitpid(child, &status, 0);
    ASSERT_TRUE(WIFEXITED(status));
    if (WEXITSTATUS(status) == 0) break;
    ++failed;
    ASSERT_EQ(WEXITSTATUS(status),
              static_cast<int>(absl::StatusCode::kResourceExhausted));
    ASSERT_EQ(LoadedValue(folder), 5);
    ASSERT_EQ(Temporaries(folder), 0);
    ASSERT_FALSE(fs::exists(folder + "/iter_0000006"));
  }
  EXPECT_GT(failed, 40);
  EXPECT_EQ(LoadedValue(folder), 6);
  fs::remove_all(folder);
}

}  // namespace
}  // namespace mimo
