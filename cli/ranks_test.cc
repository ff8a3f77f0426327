// RunOnRanks in processes that end.
#include "cli/ranks.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <memory>

#include "absl/time/clock.h"
#include "comm/rendezvous/store.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

const absl::Status kMistake = absl::InvalidArgumentError("no cat.png");

// A process that runs `body` on its ranks and ends with 2 by kMistake.
pid_t Start(const Job& job, int threads, const RankOptions& options,
            RankBody body) {
  const pid_t child = fork();
  if (child != 0) return child;
  const absl::Status status = RunOnRanks(
      job, threads, options, [] { return absl::OkStatus(); },
      [] { return absl::OkStatus(); }, body);
  _exit(status == kMistake ? 2 : 3);
}

// Rank `rank` of two.
pid_t StartRank(int rank, int port, RankBody body) {
  return Start({rank, 2, rank, 2, "127.0.0.1", port, "key"}, /*threads=*/1, {},
               body);
}

int FreePort() { return (*StoreServer::Start("127.0.0.1", 0, "key"))->port(); }

// Rank 0 cannot hear of it, being stopped, nor tell it.
TEST(Ranks, AMistakeBesideAStoppedRankEndsItsOwn) {
  const int port = FreePort();
  pid_t ranks[2];
  for (int rank : {0, 1}) {
    ranks[rank] = StartRank(rank, port, [&](Communicator* world, Kept&) {
      world->Barrier(Stream());  // rank 1 may still need rank 0 to come here
      if (rank == 0) raise(SIGSTOP);
      absl::SleepFor(absl::Seconds(1));
      return kMistake;
    });
  }
  int status = 0;
  ASSERT_EQ(waitpid(ranks[0], &status, WUNTRACED), ranks[0]);
  ASSERT_TRUE(WIFSTOPPED(status));
  const absl::Time start = absl::Now();
  ASSERT_EQ(waitpid(ranks[1], &status, 0), ranks[1]);
  EXPECT_EQ(status, W_EXITCODE(2, 0));
  EXPECT_LT(absl::Now() - start, absl::Seconds(30)) << "not the timeout";
  kill(ranks[0], SIGKILL);
  EXPECT_EQ(waitpid(ranks[0], &status, 0), ranks[0]);
}

TEST(Ranks, AMistakeBesideAReaderThatHangsEndsItsRank) {
  const int port = FreePort();
  pid_t ranks[2];
  for (int rank : {0, 1}) {
    ranks[rank] = StartRank(rank, port, [&](Communicator* world, Kept& kept) {
      while (rank == 0 && world->Health().ok())
        absl::SleepFor(absl::Milliseconds(1));
      if (rank == 0) return world->Health();
      kept = std::shared_ptr<void>(
          nullptr, [](void*) { absl::SleepFor(absl::InfiniteDuration()); });
      return kMistake;
    });
  }
  const absl::Time start = absl::Now();
  for (int rank : {0, 1}) {
    int status = 0;
    ASSERT_EQ(waitpid(ranks[rank], &status, 0), ranks[rank]);
    EXPECT_EQ(status, W_EXITCODE(rank == 0 ? 3 : 2, 0)) << "rank " << rank;
  }
  EXPECT_LT(absl::Now() - start, absl::Seconds(30)) << "not the timeout";
}

// The others of its process cannot end without it.
TEST(Ranks, AThreadThatHangsEndsWithTheOthers) {
  pid_t jobs[2];
  for (const bool mistake : {false, true}) {  // false: the others wait for it
    jobs[mistake] = Start(Job(), /*threads=*/3, {.timeout = absl::Seconds(1)},
                          [&](Communicator* world, Kept&) {
                            if (world->rank() == 2)
                              absl::SleepFor(absl::InfiniteDuration());
                            if (world->rank() == 1 && mistake) return kMistake;
                            world->Barrier(Stream());
                            return world->Health();
                          });
  }
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  for (const bool mistake : {false, true}) {
    int status = 0;
    while (waitpid(jobs[mistake], &status, WNOHANG) == 0) {
      if (absl::Now() > deadline) kill(jobs[mistake], SIGKILL);
      absl::SleepFor(absl::Milliseconds(10));
    }
    EXPECT_EQ(status, W_EXITCODE(mistake ? 2 : 1, 0)) << "mistake " << mistake;
  }
}

}  // namespace
}  // namespace mimo
