#include "comm/rendezvous/store_board.h"

#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

constexpr char kHost[] = "127.0.0.1";
constexpr char kKey[] = "the job's key";
constexpr absl::Duration kLong = absl::Seconds(60);  // never waited out

class StoreBoardTest : public testing::Test {
 protected:
  struct Rank {
    std::unique_ptr<Store> store;
    std::unique_ptr<FailureBoard> board;
  };
  Rank Enter(int rank) {
    auto store = *Store::Connect(kHost, server_->port(), kKey, rank, kLong);
    auto board = NewStoreBoard(*store, rank);
    return {std::move(store), std::move(board)};
  }
  // What is raised, once something is.
  static std::string Await(FailureBoard& board) {
    const absl::Time deadline = absl::Now() + kLong;
    std::string raised;
    while ((raised = board.Raised()).empty() && absl::Now() < deadline) {
      std::this_thread::yield();
    }
    return raised;
  }

  std::unique_ptr<StoreServer> server_ = *StoreServer::Start(kHost, 0, kKey);
  Rank zero_ = Enter(0), one_ = Enter(1);
};

TEST_F(StoreBoardTest, TheFirstReasonCountsForAll) {
  EXPECT_EQ(zero_.board->Raised(), "");
  one_.board->Raise("INTERNAL: the first");
  EXPECT_EQ(one_.board->Raised(), "INTERNAL: the first");
  EXPECT_EQ(Await(*zero_.board), "INTERNAL: the first");
  zero_.board->Raise("the second");
  one_.board->Raise("the third");
  EXPECT_EQ(zero_.board->Raised(), "INTERNAL: the first");
  EXPECT_EQ(one_.board->Raised(), "INTERNAL: the first");
  EXPECT_EQ(Await(*Enter(2).board), "INTERNAL: the first");  // a late rank
}

TEST_F(StoreBoardTest, Posts) {
  zero_.board->Post("world", "barrier");
  zero_.board->Post("language/dp", "all_reduce");
  EXPECT_EQ(one_.board->Posted("world", 0, absl::Now() + kLong), "barrier");
  EXPECT_EQ(one_.board->Posted("language/dp", 0, absl::Now() + kLong),
            "all_reduce");
  EXPECT_EQ(one_.board->Posted("world", 1, absl::Now()), "");
  EXPECT_EQ(one_.board->Posted("world", 1, absl::InfinitePast()), "");
  std::thread later([&] { one_.board->Post("world", "late"); });
  EXPECT_EQ(zero_.board->Posted("world", 1, absl::Now() + kLong), "late");
  later.join();
}

TEST_F(StoreBoardTest, TheEndOfARankIsRaised) {
  one_.board.reset();
  one_.store.reset();
  EXPECT_EQ(Await(*zero_.board), "rank 1's process ended");
}

TEST_F(StoreBoardTest, LeavingInOrderIsNoFailure) {
  one_.store->Close();
  EXPECT_EQ(one_.board->Raised(), "");
  one_.board->Raise("too late to tell");
  zero_.store->Close();
  EXPECT_TRUE(server_->AwaitLeave(2, kLong));
  server_.reset();
  EXPECT_EQ(zero_.board->Raised(), "");
}

TEST_F(StoreBoardTest, TheLossOfTheServerIsRaised) {
  server_.reset();
  EXPECT_EQ(Await(*one_.board), "rank 0's store is gone");
  EXPECT_EQ(one_.board->Posted("world", 0, absl::Now() + kLong), "");
  one_.board->Raise("another");
  EXPECT_EQ(one_.board->Raised(), "rank 0's store is gone");
}

TEST_F(StoreBoardTest, AGetEndsWithTheWorld) {
  EXPECT_TRUE(one_.store->Set("x", "1").ok());
  const auto Get = [&](const std::string& key, absl::Duration timeout) {
    return GetUnlessFailed(*zero_.store, *zero_.board, key, timeout);
  };
  EXPECT_EQ(*Get("x", absl::ZeroDuration()), "1");
  EXPECT_EQ(Get("never", absl::Milliseconds(20)).status(),
            absl::DeadlineExceededError("nobody set \"never\" within 20ms"));
  std::thread later([&] {
    absl::SleepFor(absl::Milliseconds(20));
    one_.store.reset();
  });
  EXPECT_EQ(Get("never", kLong).status(),
            absl::AbortedError("rank 1's process ended"));
  later.join();
}

TEST_F(StoreBoardTest, ALostConnectionIsSaidByTheRanksName) {
  const absl::Status lost = absl::UnavailableError("connection reset");
  EXPECT_EQ(OrFailure(*zero_.board, absl::OkStatus()), absl::OkStatus());
  EXPECT_EQ(OrFailure(*zero_.board, lost), lost);
  one_.store.reset();
  EXPECT_EQ(OrFailure(*zero_.board, lost),
            absl::AbortedError("rank 1's process ended"));
}

}  // namespace
}  // namespace mimo
