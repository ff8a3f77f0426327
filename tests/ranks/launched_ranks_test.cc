// `mimo launch --nproc N -- train`, and its ranks started one by one, by the
// binary itself: processes over gloo are the threads of --ranks, and the loss
// of one is the end of all.
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "tests/ranks/failures.h"
#include "tests/testing/launched.h"
#include "tests/testing/run_mimo.h"
#include "tests/testing/tiny_run.h"

namespace mimo {
namespace {

TEST(LaunchedRanks, AreTheThreadsOfRanks) {
  const auto apart = [](const std::string& images,
                        const std::string& language) {
    return "parallelism={deployment_mode: heterogeneous, modules: {images: {" +
           images + "}, language: {" + language + "}}}";
  };
  const std::string tp2cp2 =
      "{tensor_model_parallel_size: 2, context_parallel_size: 2, "
      "data_parallel_size: 1}";
  for (const auto& [ranks, more] : std::vector<std::pair<int, Words>>{
           {2, {}},
           {4,
            {"parallelism={deployment_mode: colocated, modules: {images: "
             "{data_parallel_size: 4}, language: " +
             tp2cp2 + "}}"}},
           {5,
            {apart("tensor_model_parallel_size: 2, data_parallel_size: 1",
                   "data_parallel_size: 3, rank_offset: 2")}}}) {
    const std::string here = TestFolder("here"), there = TestFolder("there");
    Words words = more;
    words.push_back("train.global_batch_size=12");
    words.push_back(
        absl::StrCat("train.micro_batch_size=", ranks == 4 ? 4 : 2));
    Words threads = TinyTrain(here, words);
    threads.push_back(absl::StrCat("--ranks=", ranks));
    const Ran run = RunMimo(threads);
    ASSERT_EQ(run.code, 0) << run.err;
    ASSERT_EQ(Wait(Start(there, Launched(ranks, TinyTrain(there, words)))), 0)
        << Read(there + "/err");
    EXPECT_TRUE(Untimed(ReadMetrics(there + "/metrics.jsonl")) ==
                Untimed(ReadMetrics(here + "/metrics.jsonl")));
    EXPECT_TRUE(Tensors(here, ranks) == Tensors(there, ranks));
  }
}

// Rank 0 writes what all processes did.
TEST(LaunchedRanks, OneTrace) {
  const std::string folder = TestFolder("run");
  const Words words = TinyTrain(folder, {"--trace=" + folder + "/trace.json"});
  ASSERT_EQ(Wait(Start(folder, Launched(2, words))), 0)
      << Read(folder + "/err");
  const nlohmann::json events =
      nlohmann::json::parse(Read(folder + "/trace.json"))["traceEvents"];
  // When each rank's two sums of three iterations were made.
  std::vector<double> ends[2];
  for (const nlohmann::json& event : events) {
    if (event["name"] == "sum") {
      ends[event["pid"].get<int>()].push_back(event["ts"].get<double>() +
                                              event["dur"].get<double>());
    }
  }
  ASSERT_EQ(ends[0].size(), 6u);
  ASSERT_EQ(ends[1].size(), 6u);
  for (int i = 1; i < 6; ++i) {
    // On one clock: none begins before the other has left the one before it.
    EXPECT_LT(ends[0][i - 1], ends[1][i]);
    EXPECT_LT(ends[1][i - 1], ends[0][i]);
  }
  EXPECT_TRUE(absl::StrContains(Read(folder + "/err"), "[0] trace: bubble "))
      << Read(folder + "/err");
}

TEST(LaunchedRanks, AUsersMistakeIsSaidOnce) {
  for (const std::string wrong :
       {"train.train_itres=3", "optimizer.modules.x.lr_mult=2"}) {
    const std::string folder = TestFolder("run");
    EXPECT_EQ(Wait(Start(folder, Launched(3, TinyTrain(folder, {wrong})))), 2);
    const std::string err = Read(folder + "/err");
    EXPECT_EQ(Lines(err), 2) << err;
    EXPECT_TRUE(absl::StartsWith(err, "[0] mimo: ")) << err;
    EXPECT_TRUE(absl::StrContains(err, "mimo: launch: rank ")) << err;
  }
}

// Before a process is started.
TEST(LaunchedRanks, AMistakeInTheFlagsIsSaidOnce) {
  for (const std::string wrong : {"--ranks=2", "--ranks=x", "--nope=1"}) {
    const std::string folder = TestFolder("run");
    EXPECT_EQ(Wait(Start(folder, Launched(3, TinyTrain(folder, {wrong})))), 2);
    const std::string err = Read(folder + "/err");
    EXPECT_EQ(Lines(err), 1) << err;
    EXPECT_TRUE(absl::StartsWith(err, "mimo: train: ")) << err;
  }
}

// Whoever finds it, on every layout.
TEST(LaunchedRanks, AMistakeInTheDataIsSaidOnce) {
  ExpectMistakeSaidOnce(2, {});
  ExpectMistakeSaidOnce(4, {"train.micro_batch_size=1"});
  ExpectMistakeSaidOnce(
      4, {"model.language.num_layers=2",
          "parallelism={deployment_mode: heterogeneous, modules: {images: "
          "{data_parallel_size: 2}, language: {pipeline_model_parallel_size: "
          "2, data_parallel_size: 1, rank_offset: 2}}}"});
}

// The process id of rank `rank` under the launcher `parent`.
pid_t FindRank(pid_t parent, int rank) {
  const std::string children =
      absl::StrCat("/proc/", parent, "/task/", parent, "/children");
  std::ifstream file(children);
  for (pid_t child; file >> child;) {
    std::ifstream environment(absl::StrCat("/proc/", child, "/environ"));
    std::string variable;
    while (std::getline(environment, variable, '\0'))
      if (variable == absl::StrCat("RANK=", rank)) return child;
  }
  return 0;
}

// Ranks are killed at random times; the others end at once, the launcher names
// the one, and the last checkpoint goes on to where an undisturbed run ends.
void ExpectGoesOn(const std::string& name, int ranks, Words more) {
  more.insert(more.end(), {"train.train_iters=60", "checkpoint.save_interval=5",
                           "train.distributed_timeout_minutes=0.5"});
  const std::string straight = TestFolder(name + "_straight");
  const absl::Time start = absl::Now();
  ASSERT_EQ(Wait(Start(straight, Launched(ranks, TinyTrain(straight, more)))),
            0)
      << Read(straight + "/err");
  const absl::Duration whole = absl::Now() - start;
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937 random(seed);
  int kills = 0;
  for (int i = 0; i < 5; ++i) {
    const std::string folder = TestFolder(name + "_killed");
    Words words = TinyTrain(folder, more);
    words.push_back("checkpoint.load=" + folder + "/save");
    const int victim = std::uniform_int_distribution<>(0, ranks - 1)(random);
    const absl::Duration after =
        whole * std::uniform_real_distribution<>()(random);
    SCOPED_TRACE(
        absl::StrCat("rank ", victim, " after ", absl::FormatDuration(after)));
    const pid_t launcher = Start(folder, Launched(ranks, words));
    absl::SleepFor(after);
    const pid_t rank = FindRank(launcher, victim);
    const bool killed = rank > 0 && kill(rank, SIGKILL) == 0;
    const absl::Time then = absl::Now();
    const int code = Wait(launcher);
    if (killed && code != 0) {  // 0: it had just ended
      ++kills;
      EXPECT_EQ(code, 1);
      EXPECT_LT(absl::Now() - then, absl::Seconds(25)) << "not the timeout";
      const std::string err = Read(folder + "/err");
      EXPECT_TRUE(
          absl::EndsWith(err, absl::StrCat("mimo: launch: rank ", victim,
                                           " ended by signal 9 (Killed)\n")))
          << err;
    }
    ASSERT_EQ(Wait(Start(folder, Launched(ranks, words))), 0)
        << Read(folder + "/err");
    EXPECT_TRUE(Untimed(ReadMetrics(folder + "/metrics.jsonl")) ==
                Untimed(ReadMetrics(straight + "/metrics.jsonl")));
    EXPECT_TRUE(Tensors(folder, ranks) == Tensors(straight, ranks));
  }
  EXPECT_GT(kills, 0);
}

TEST(LaunchedRanks, AKilledRankEndsTheJobAndTheRunGoesOn) {
  ExpectGoesOn("replicas", 2, {});
  ExpectGoesOn("apart", 3,
               {"model.language.num_layers=2",
                "parallelism={deployment_mode: heterogeneous, modules: "
                "{images: {data_parallel_size: 1}, language: "
                "{pipeline_model_parallel_size: 2, data_parallel_size: 1, "
                "rank_offset: 1}}}"});
}

TEST(RanksOfAScheduler, ARankThatNeverComesIsNamed) {
  Ends ends;
  for (const int victim : {0, 1}) {
    const std::string folder = TestFolder(absl::StrCat("run", victim));
    const Words words =
        TinyTrain(folder, {"train.global_batch_size=6",
                           "train.distributed_timeout_minutes=0.05"});
    const int port = FreePort();
    std::vector<pid_t> ranks(3);
    const absl::Time start = absl::Now();
    for (int rank = 0; rank < 3; ++rank)
      if (rank != victim)
        ranks[rank] = StartRank(rank, 3, port, folder, words, 3);
    ends.emplace_back([=] {
      ExpectNamed(folder, ranks, victim);
      // The timeout, and rank 0's wait for the late.
      EXPECT_LT(absl::Now() - start, absl::Seconds(3 + 5 + 10));
    });
  }
}

// Where it reads what nobody writes, while another does so, too, or waits for
// it.
TEST(RanksOfAScheduler, ARankKilledWhileItSetsUpEndsTheOthers) {
  for (const int victim : {1, 2}) {
    const std::string folder = TestFolder("run");
    const Words words = TinyTrain(folder, {"train.global_batch_size=6"});
    const int port = FreePort();
    std::vector<pid_t> ranks;
    for (int rank = 0; rank < 3; ++rank) {
      Words of_rank = words;
      const std::string fifo = absl::StrCat(folder, "/fifo", rank);
      ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
      if (rank > 0) of_rank.push_back("data.path=" + fifo);
      ranks.push_back(StartRank(rank, 3, port, folder, of_rank, 3));
    }
    int writers[2];
    for (int rank : {1, 2}) {  // waits for the reader
      writers[rank - 1] =
          open(absl::StrCat(folder, "/fifo", rank).c_str(), O_WRONLY);
    }
    ASSERT_EQ(kill(ranks[victim], SIGKILL), 0);
    const absl::Time killed = absl::Now();
    EXPECT_EQ(Wait(ranks[victim]), 128 + SIGKILL);
    ExpectNamed(folder, ranks, victim);
    EXPECT_LT(absl::Now() - killed, absl::Seconds(30)) << "not the timeout";
    for (int writer : writers) close(writer);
  }
}

TEST(RanksOfAScheduler, AKilledRankEndsTheJobAndTheRunGoesOn) {
  ExpectNamedAndGoesOn(3, 8,
                       {"train.global_batch_size=6", "train.train_iters=60",
                        "checkpoint.save_interval=5"},
                       /*each=*/3);
}

// A launcher of three ranks that train on and on.
pid_t StartEndless(const std::string& folder, const Words& more = {}) {
  Words words = TinyTrain(folder, more);
  words.insert(words.end(),
               {"train.global_batch_size=6", "train.train_iters=100000",
                "train.distributed_timeout_minutes=0.05"});
  return Start(folder, Launched(3, words));
}

// That the launcher of three ranks ends with what it says of a stopped one; all
// that the job said.
std::string ExpectHangs(pid_t launcher, const std::string& folder, int victim) {
  EXPECT_EQ(Wait(launcher), 1);
  const std::string err = Read(folder + "/err");
  EXPECT_TRUE(absl::EndsWith(
      err, absl::StrCat("mimo: launch: rank ", victim,
                        " hangs: killed 10s after the others\n")))
      << err;
  EXPECT_EQ(Lines(err), 3) << "one of each other rank\n" << err;
  return err;
}

// Past its first checkpoint; rank 0's store stops with it.
TEST(LaunchedRanks, AStoppedRankIsNamed) {
  Ends ends;
  for (const int victim : {0, 1}) {
    const std::string folder = TestFolder(absl::StrCat("stopped", victim));
    const pid_t launcher = StartEndless(
        folder, {"checkpoint.save_interval=20", "checkpoint.keep=1"});
    const absl::Time deadline = absl::Now() + absl::Seconds(60);
    while (!FindCheckpoint(folder + "/save").ok() && absl::Now() < deadline)
      absl::SleepFor(absl::Milliseconds(1));
    const pid_t rank = FindRank(launcher, victim);
    ASSERT_GT(rank, 0);
    ASSERT_EQ(kill(rank, SIGSTOP), 0);
    const absl::Time stopped = absl::Now();
    ends.emplace_back([=] {
      const std::string err = ExpectHangs(launcher, folder, victim);
      // The timeout, word to and of rank 0, the launcher's patience.
      EXPECT_LT(absl::Now() - stopped, absl::Seconds(3 + 5 + 2 + 10 + 5));
      const std::string missing =
          absl::StrCat("; missing: rank ", victim, " (");
      EXPECT_EQ(Lines(absl::StrReplaceAll(err, {{missing, "\n"}})), 5) << err;
    });
  }
}

// By the launcher, not the first that gave up.
TEST(LaunchedRanks, ARankStoppedBeforeTheyMeetIsNamed) {
  Ends ends;
  for (const int victim : {0, 1}) {
    const std::string folder = TestFolder(absl::StrCat("stopped", victim));
    const pid_t launcher = StartEndless(folder);
    pid_t rank = 0;
    while (rank == 0) rank = FindRank(launcher, victim);
    ASSERT_EQ(kill(rank, SIGSTOP), 0);
    ends.emplace_back([=] { ExpectHangs(launcher, folder, victim); });
  }
}

}  // namespace
}  // namespace mimo
