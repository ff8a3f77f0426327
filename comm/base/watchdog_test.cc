// The watchdog over communicators and a board that the test plays.
#include "comm/base/watchdog.h"

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "comm/base/planned_communicator.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::StartsWith;

constexpr absl::Duration kTimeout = absl::Milliseconds(400);

// Barriers that end when told; of ranks 0 to 2, this being 0.
class HandCommunicator : public PlannedCommunicator {
 public:
  explicit HandCommunicator(std::string name = "hand")
      : PlannedCommunicator(std::move(name), {0, 1, 2}, 0) {}
  ~HandCommunicator() override { Retire(); }

  void Finish() { ++finished_; }
  using Communicator::Retire;
  void SetError(absl::Status error) {
    absl::MutexLock lock(&mutex_);
    error_ = std::move(error);
  }
  absl::Notification aborted;

 protected:
  void DoBroadcast(void*, int64_t, DType, int, Stream) override {}
  void DoExchange(absl::Span<const Transfer>, Stream) override {}
  void DoBarrier(Stream) override {}
  void DoAbort(const absl::Status&) override { aborted.Notify(); }
  int64_t Completed() const override { return finished_; }
  absl::Status Poll() override {
    absl::MutexLock lock(&mutex_);
    return error_;
  }

 private:
  std::atomic<int64_t> finished_{0};
  absl::Mutex mutex_;
  absl::Status error_;
};

// The other ranks posted what `posts` says.
class HandBoard : public FailureBoard {
 public:
  explicit HandBoard(std::map<int, std::string> posts)
      : posts_(std::move(posts)) {}
  void Raise(const std::string& reason) override {
    absl::MutexLock lock(&mutex_);
    if (raised_.empty()) raised_ = reason;
  }
  std::string Raised() override {
    absl::MutexLock lock(&mutex_);
    return raised_;
  }
  void Post(const std::string& group, const std::string& operation) override {
    absl::MutexLock lock(&mutex_);
    own_[group] = operation;
  }
  std::string Posted(const std::string& group, int rank,
                     absl::Time deadline) override {
    if (rank == 0) return own(group);
    const auto found = posts_.find(rank);
    if (found != posts_.end()) return found->second;
    absl::SleepFor(deadline - absl::Now());
    return "";
  }
  std::string own(const std::string& group) {
    absl::MutexLock lock(&mutex_);
    return own_[group];
  }

 private:
  const std::map<int, std::string> posts_;
  absl::Mutex mutex_;
  std::string raised_;
  std::map<std::string, std::string> own_;
};

struct Fixture {
  explicit Fixture(std::map<int, std::string> posts,
                   absl::Duration timeout = kTimeout)
      : board(std::make_shared<HandBoard>(std::move(posts))),
        watchdog(std::make_shared<Watchdog>(0, board, timeout)) {
    communicator.WatchWith(watchdog);
    other.WatchWith(std::move(watchdog));
  }
  // The failure's status, which both communicators have.
  absl::Status Wait() {
    communicator.aborted.WaitForNotification();
    other.aborted.WaitForNotification();
    EXPECT_EQ(communicator.Health(), other.Health());
    return communicator.Health();
  }
  std::shared_ptr<HandBoard> board;
  std::shared_ptr<Watchdog> watchdog;
  HandCommunicator communicator, other{"other"};
};

TEST(Watchdog, FailsWhatDoesNotEndAndNamesTheMissing) {
  Fixture f({{1, "in barrier(), sequence 1"}});
  f.communicator.Barrier({});
  f.communicator.Finish();
  f.communicator.Barrier({});
  const absl::Time start = absl::Now();
  const absl::Status status = f.Wait();
  EXPECT_GT(absl::Now() - start, kTimeout / 2);
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(status.message(),
            "rank 0: barrier(), sequence 1 in group hand of ranks [0, 1, 2] "
            "does not end; missing: rank 2 (no answer)");
  EXPECT_EQ(f.board->own("hand"),
            "in barrier(), sequence 1\nbarrier(), sequence 0");
  EXPECT_EQ(f.board->own("other"), "in barrier(), sequence 1 in group hand");
  EXPECT_THAT(f.board->Raised(), StartsWith("DEADLINE_EXCEEDED: rank 0: "));
}

TEST(Watchdog, DumpsTheLastOperations) {
  setenv("MIMO_OPERATIONS_DUMP", testing::TempDir().c_str(), 1);
  Fixture f({});
  f.communicator.Broadcast(nullptr, 0, DType::kInt32, 2, {});
  f.communicator.Finish();
  f.communicator.Barrier({});
  EXPECT_FALSE(f.Wait().ok());
  unsetenv("MIMO_OPERATIONS_DUMP");
  std::ifstream file(testing::TempDir() + "/rank_0.txt");
  const std::string dump((std::istreambuf_iterator<char>(file)), {});
  const std::string time = "20..-..-..T..:..:..[.]......Z ";
  EXPECT_THAT(
      dump, MatchesRegex(absl::StrCat(
                "group hand of ranks .0, 1, 2., its last 2 operations\n", time,
                "done with broadcast.0 int32, root 2., sequence "
                "0\n",
                time, "in barrier.., sequence 1\n",
                "group other of ranks .0, 1, 2., its last 0 "
                "operations\n")))
      << dump;
}

TEST(Watchdog, NamesWhatOthersCalledInstead) {
  Fixture f({{1, "in all_gather(3 float32), sequence 0"},
             {2, "in exchange(1 transfers, first peer 0), sequence 0"}});
  f.communicator.Barrier({});
  const absl::Status status = f.Wait();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              EndsWith("; rank 1 is in all_gather(3 float32), sequence 0, "
                       "rank 2 is in exchange(1 transfers, first peer 0), "
                       "sequence 0"));
}

TEST(Watchdog, NamesWhatOthersCalledBefore) {
  Fixture f({{1,
              "in barrier(), sequence 2\n"
              "barrier(), sequence 0\n"
              "all_gather(3 float32), sequence 1"},
             {2, "in barrier(), sequence 1\nbarrier(), sequence 0"}});
  f.communicator.Barrier({});
  f.communicator.Finish();
  f.communicator.Barrier({});
  const absl::Status status = f.Wait();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              EndsWith("; rank 1 made all_gather(3 float32), sequence 1, "
                       "where this rank made barrier(), sequence 1"));
}

TEST(Watchdog, NamesWhatOthersAreStillIn) {
  Fixture f({{1, "in all_gather(3 float32), sequence 0"}});
  f.communicator.Barrier({});
  f.communicator.Finish();
  f.communicator.Barrier({});
  const absl::Status status = f.Wait();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("rank 1 is in all_gather(3 float32), sequence 0, "
                        "where this rank made barrier(), sequence 0"));
}

TEST(Watchdog, NamesTheRanksBehind) {
  Fixture f({{1, "before its first operation"},
             {2, "done with barrier(), sequence 6"}});
  f.communicator.Barrier({});
  EXPECT_THAT(std::string(f.Wait().message()),
              EndsWith("; missing: rank 1 (before its first operation), rank "
                       "2 (done with barrier(), sequence 6)"));
}

TEST(Watchdog, OfAnExchangeAsksForThePeer) {
  Fixture f({{1, "done with barrier(), sequence 6"},
             {2, "in barrier(), sequence 7"}});
  char byte;
  f.communicator.Recv(&byte, 1, DType::kUInt8, 2, {});
  const absl::Status status = f.Wait();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()),
              AllOf(EndsWith("does not end; missing: rank 1 (in no operation); "
                             "rank 2 is in barrier(), sequence 7"),
                    HasSubstr("exchange(1 transfers, first peer 2)")));
}

// One that does not answer takes no other's time.
TEST(Watchdog, NamesOnlyWhoDoesNotAnswer) {
  Fixture f({{2, "in barrier(), sequence 0"}});
  f.communicator.Barrier({});
  EXPECT_THAT(std::string(f.Wait().message()),
              EndsWith("does not end; missing: rank 1 (no answer)"));
}

// Rank 1 waits for rank 2 in another group.
TEST(Watchdog, NamesWhoTheOthersWaitFor) {
  Fixture f(
      {{1, "in exchange(1 transfers, first peer 1), sequence 7 in group x"},
       {2, "done with barrier(), sequence 6"}});
  char byte;
  f.communicator.Send(&byte, 1, DType::kUInt8, 1, {});
  EXPECT_THAT(std::string(f.Wait().message()),
              EndsWith("does not end; missing: rank 2 (in no operation); rank "
                       "1 is in exchange(1 transfers, first peer 1), sequence "
                       "7 in group x"));
}

// The board is rank 0's.
TEST(Watchdog, NamesRankZeroWhereTheBoardDoesNotAnswer) {
  class Silent : public HandBoard {
   public:
    Silent() : HandBoard({}) {}
    void Post(const std::string&, const std::string&) override {}
  };
  auto watchdog =
      std::make_shared<Watchdog>(0, std::make_shared<Silent>(), kTimeout);
  HandCommunicator communicator;
  communicator.WatchWith(std::move(watchdog));
  communicator.Barrier({});
  communicator.aborted.WaitForNotification();
  EXPECT_THAT(std::string(communicator.Health().message()),
              EndsWith("does not end; missing: rank 0 (no answer)"));
}

TEST(Watchdog, FailsWithAnErrorOfItsOwn) {
  Fixture f({{1, "in barrier(), sequence 0"}, {2, "in barrier(), sequence 0"}});
  f.other.SetError(absl::InternalError("the link is down"));
  const absl::Status status = f.Wait();
  EXPECT_EQ(status, absl::InternalError("rank 0: in no operation; first "
                                        "report: the link is down"));
  EXPECT_EQ(f.board->Raised(), "INTERNAL: the link is down");
}

TEST(Watchdog, HearsOfOtherRanksFailures) {
  Fixture f({});
  f.board->Raise("rank 2's process ended");
  EXPECT_EQ(f.Wait(),
            absl::UnavailableError("rank 0: in no operation; first report: "
                                   "rank 2's process ended"));
}

// Nobody is asked, so nobody who lives is called missing.
TEST(Watchdog, NamesARankThatEnded) {
  for (const char* end : {"rank 2's process ended", "rank 0's store is gone"}) {
    Fixture f({{1, "done with barrier(), sequence 6"}}, absl::Seconds(60));
    f.communicator.Barrier({});
    f.board->Raise(end);
    EXPECT_EQ(f.Wait(),
              absl::UnavailableError(absl::StrCat(
                  "rank 0: barrier(), sequence 0 in group hand of ranks [0, 1, "
                  "2] does not end; first report: ",
                  end)));
  }
}

// It says so itself; nothing is logged or asked.
TEST(Watchdog, HearsOfWhatARankTells) {
  Fixture f({}, absl::Seconds(60));
  f.communicator.Barrier({});
  testing::internal::CaptureStderr();
  f.board->Raise(OwnFailure(12, absl::NotFoundError("no picture")));
  EXPECT_EQ(f.Wait(), absl::NotFoundError("rank 12 failed: no picture"));
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST(Watchdog, WhatJoinsAFailedWorldFails) {
  auto board = std::make_shared<HandBoard>(std::map<int, std::string>());
  auto watchdog = std::make_shared<Watchdog>(0, board, kTimeout);
  HandCommunicator first("first"), late("late");
  first.WatchWith(watchdog);
  first.Abort(absl::AbortedError("enough"));
  first.aborted.WaitForNotification();
  while (board->Raised().empty()) absl::SleepFor(absl::Milliseconds(1));
  late.WatchWith(watchdog);
  late.aborted.WaitForNotification();
  EXPECT_EQ(late.Health().code(), absl::StatusCode::kAborted);
}

TEST(Watchdog, WhatLeavesAFailedWorldFails) {
  auto board = std::make_shared<HandBoard>(std::map<int, std::string>());
  auto watchdog = std::make_shared<Watchdog>(0, board, kTimeout);
  HandCommunicator first("first"), leaving("leaving");
  leaving.WatchWith(watchdog);
  first.WatchWith(watchdog);
  first.Abort(absl::AbortedError("enough"));
  leaving.Retire();
  EXPECT_TRUE(leaving.aborted.HasBeenNotified());
  EXPECT_EQ(leaving.Health().code(), absl::StatusCode::kAborted);
}

// Slow progress is progress: the operations take longer than the timeout in
// all, none by itself.
TEST(Watchdog, LetsSlowOnesGoOn) {
  constexpr absl::Duration kLong = absl::Seconds(1);
  Fixture f({}, kLong);
  const absl::Time start = absl::Now();
  for (int i = 0; i < 1000; ++i) f.communicator.Barrier({});
  while (absl::Now() - start < 1.5 * kLong) {
    absl::SleepFor(kLong / 50);
    f.communicator.Finish();
  }
  EXPECT_TRUE(f.communicator.Health().ok()) << f.communicator.Health();
}

TEST(Watchdog, CommunicatorsComeAndGoMeanwhile) {
  auto board = std::make_shared<HandBoard>(std::map<int, std::string>());
  auto watchdog = std::make_shared<Watchdog>(0, board, absl::Milliseconds(50));
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 3000; ++i) {
        HandCommunicator communicator;
        communicator.WatchWith(watchdog);
        for (int j = 0; j < 20; ++j) {
          communicator.Barrier({});
          communicator.Finish();
        }
        EXPECT_EQ(communicator.LastOperations().size(), 20);
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(board->Raised(), "");
}

}  // namespace
}  // namespace mimo
