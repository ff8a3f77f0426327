// Jobs of which a rank fails.
#ifndef MIMO_TESTS_RANKS_FAILURES_H_
#define MIMO_TESTS_RANKS_FAILURES_H_

#include <signal.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "mimo/checkpoint/checkpoint.h"
#include "tests/testing/launched.h"
#include "tests/testing/run_mimo.h"
#include "tests/testing/tiny_run.h"

namespace mimo {

using Words = std::vector<std::string>;
// The ends of jobs, which mostly wait for a timeout: they wait together.
using Ends = std::vector<std::jthread>;

inline int Lines(const std::string& text) {
  return static_cast<int>(std::count(text.begin(), text.end(), '\n'));
}

// A picture that is not there ends a job of `ranks` with two lines: that of the
// rank that would read it, and the launcher's.
inline void ExpectMistakeSaidOnce(int ranks, const Words& more) {
  const std::string folder = TestFolder("mistake");
  std::string items = Read("tests/fixtures/captions.jsonl");
  const size_t name = items.find("images/house");
  ASSERT_NE(name, items.npos);
  items.replace(name, 12, "images/no");
  Words words =
      TinyTrain(folder, {"data.path=" + Write(folder + "/items.jsonl", items),
                         "data.image_root=tests/fixtures"});
  words.insert(words.end(), more.begin(), more.end());
  const absl::Time start = absl::Now();
  EXPECT_EQ(Wait(Start(folder, Launched(ranks, words))), 2);
  EXPECT_LT(absl::Now() - start, absl::Seconds(60)) << "not the timeout";
  const std::string err = Read(folder + "/err");
  EXPECT_EQ(Lines(err), 2) << err;
  const std::string rank = err.substr(1, 1);
  EXPECT_TRUE(absl::StartsWith(err, "[" + rank + "] mimo: ")) << err;
  EXPECT_TRUE(absl::StrContains(err, "images/no")) << err;
  EXPECT_TRUE(absl::EndsWith(err, absl::StrCat("mimo: launch: rank ", rank,
                                               " ended with exit code 2\n")))
      << err;
}

// Bytes of the newest checkpoint's tensors.
inline std::string Tensors(const std::string& folder, int ranks) {
  const std::string one = *FindCheckpoint(folder + "/save");
  std::string bytes;
  for (const char* kind : {"model", "optimizer"}) {
    for (int rank = 1; rank <= ranks; ++rank) {
      bytes += Read(absl::StrCat(one, "/", kind, "-0000", rank, "-of-0000",
                                 ranks, ".safetensors"));
    }
  }
  return bytes + Read(one + "/manifest.json");
}

// The end of a job whose ranks a scheduler started: each that was not killed
// says once that rank `victim` ended or did not come.
inline void ExpectNamed(const std::string& folder,
                        const std::vector<pid_t>& ranks, int victim) {
  for (int rank = 0; rank < ranks.size(); ++rank) {
    if (rank == victim) continue;
    EXPECT_EQ(Wait(ranks[rank]), 3);
    const std::string err = Read(absl::StrCat(folder, "/err", rank));
    EXPECT_EQ(Lines(err), 1) << err;
    EXPECT_TRUE(absl::StrContains(
                    err, absl::StrCat("rank ", victim, "'s process ended")) ||
                absl::StrContains(
                    err, absl::StrCat("rank ", victim, " did not come")) ||
                (victim == 0 && absl::StrContains(err, "rank 0's store")))
        << err;
  }
}

// The name of the newest checkpoint, if there is one.
inline std::string Newest(const std::string& folder) {
  const auto checkpoint = FindCheckpoint(folder + "/save");
  return checkpoint.ok() ? checkpoint->substr(folder.size()) : "";
}

// Ranks are killed at random times, from the start of their processes to the
// middle of training: the others end at once and name them, and the last
// checkpoint goes on to where an undisturbed run ends. On machines of `each`.
inline void ExpectNamedAndGoesOn(int ranks, int kills, Words more, int each) {
  more.push_back("train.distributed_timeout_minutes=0.2");
  const auto StartAll = [&](const std::string& folder) {
    Words words = TinyTrain(folder, more);
    words.push_back("checkpoint.load=" + folder + "/save");
    return StartRanks(ranks, folder, words, each);
  };
  const std::string straight = TestFolder("straight");
  const absl::Time start = absl::Now();
  for (const pid_t rank : StartAll(straight)) ASSERT_EQ(Wait(rank), 0);
  const absl::Duration whole = absl::Now() - start;
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937 random(seed);
  Words folders;
  std::atomic<int> named = 0;
  Ends ends;
  for (int i = 0; i < kills; ++i) {
    const std::string folder =
        folders.emplace_back(TestFolder(absl::StrCat("killed", i)));
    const int victim = i % ranks;
    const absl::Duration after =
        0.7 * whole * (i + std::uniform_real_distribution<>()(random)) / kills;
    const std::vector<pid_t> started = StartAll(folder);
    absl::SleepFor(after);
    ASSERT_EQ(kill(started[victim], SIGKILL), 0);
    const absl::Time killed = absl::Now();
    ends.emplace_back([=, &named] {
      SCOPED_TRACE(absl::StrCat("seed ", seed, ": rank ", victim, " after ",
                                absl::FormatDuration(after)));
      EXPECT_EQ(Wait(started[victim]), 128 + SIGKILL);
      if (Newest(folder) == Newest(straight)) {  // its work was done
        for (const pid_t rank : started)
          if (rank != started[victim]) Wait(rank);
        return;
      }
      ExpectNamed(folder, started, victim);
      ++named;
      // The timeout, of one that never came, and rank 0's wait for the late.
      EXPECT_LT(absl::Now() - killed, absl::Seconds(12 + 5 + 10));
    });
  }
  ends.clear();
  EXPECT_GT(named, 0);
  for (const std::string& folder : folders) {
    for (const pid_t rank : StartAll(folder)) ASSERT_EQ(Wait(rank), 0);
    EXPECT_TRUE(Untimed(ReadMetrics(folder + "/metrics.jsonl")) ==
                Untimed(ReadMetrics(straight + "/metrics.jsonl")))
        << folder;
    EXPECT_TRUE(Tensors(folder, ranks) == Tensors(straight, ranks)) << folder;
  }
}

}  // namespace mimo

#endif  // MIMO_TESTS_RANKS_FAILURES_H_
