#include "comm/rendezvous/store.h"

#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <string>
#include <thread>
#include <vector>

#include "absl/log/log_sink.h"
#include "absl/log/log_sink_registry.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "comm/rendezvous/socket.h"
#include "comm/rendezvous/store_protocol.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

constexpr char kHost[] = "127.0.0.1";
constexpr char kKey[] = "the job's key";
constexpr absl::Duration kLong = absl::Seconds(60);  // never waited out

std::unique_ptr<StoreServer> StartServer(const std::string& host = kHost,
                                         int port = 0) {
  auto server = StoreServer::Start(host, port, kKey);
  EXPECT_TRUE(server.ok()) << server.status();
  return *std::move(server);
}

std::unique_ptr<Store> Connect(const StoreServer& server, int rank = 0,
                               const std::string& host = kHost) {
  auto store = Store::Connect(host, server.port(), kKey, rank, kLong);
  EXPECT_TRUE(store.ok()) << store.status();
  return *std::move(store);
}

// The lines that are logged while it lives.
class Log final : absl::LogSink {
 public:
  Log() { absl::AddLogSink(this); }
  ~Log() override { absl::RemoveLogSink(this); }
  void Send(const absl::LogEntry& entry) override {
    absl::MutexLock lock(&mutex_);
    absl::StrAppend(&lines_, entry.text_message(), "\n");
  }
  // Waits for a line that holds `text`.
  bool Await(absl::string_view text) {
    absl::MutexLock lock(&mutex_);
    const auto there = [&] { return absl::StrContains(lines_, text); };
    return mutex_.AwaitWithTimeout(absl::Condition(&there), kLong);
  }

 private:
  absl::Mutex mutex_;
  std::string lines_;
};

TEST(Store, SetGetSetOnceAdd) {
  const auto server = StartServer();
  const auto a = Connect(*server, 0), b = Connect(*server, 1);
  EXPECT_TRUE(a->Set("x", "1").ok());
  EXPECT_EQ(*b->Get("x", kLong), "1");
  EXPECT_TRUE(b->Set("x", "").ok());
  EXPECT_EQ(*a->Get("x", kLong), "");
  EXPECT_EQ(*a->SetOnce("x", "2"), "");
  EXPECT_EQ(*a->SetOnce("y", "3"), "3");
  EXPECT_EQ(*b->SetOnce("y", "4"), "3");
  EXPECT_EQ(*b->Get("y", kLong), "3");
  EXPECT_EQ(*a->Add("n", 5), 5);
  EXPECT_EQ(*b->Add("n", -7), -2);
  EXPECT_EQ(*b->Get("n", kLong), "-2");
  const std::string binary("\0\xff\n\"", 4);
  EXPECT_TRUE(a->Set(binary, binary + binary).ok());
  EXPECT_EQ(*b->Get(binary, kLong), binary + binary);
}

TEST(Store, RefusesWhatItCannotDo) {
  const auto server = StartServer();
  const auto store = Connect(*server);
  EXPECT_TRUE(store->Set("word", "hello").ok());
  const auto sum = store->Add("word", 1);
  EXPECT_TRUE(absl::IsInvalidArgument(sum.status())) << sum.status();
  EXPECT_TRUE(absl::StrContains(sum.status().message(), "\"hello\""))
      << sum.status();
  EXPECT_TRUE(store->Set("n", "9223372036854775807").ok());
  EXPECT_TRUE(absl::IsInvalidArgument(store->Add("n", 1).status()));
  // Up to 1 MiB with the key and what names the call.
  const std::string big((1 << 20) - 14, 'x');
  EXPECT_TRUE(store->Set("b", big).ok());
  EXPECT_EQ(*store->Get("b", kLong), big);
  EXPECT_TRUE(absl::IsInvalidArgument(store->Set("bb", big)));
  EXPECT_EQ(*store->Get("word", kLong), "hello");

  EXPECT_TRUE(
      absl::IsInvalidArgument(StoreServer::Start(kHost, 0, "").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      Store::Connect(kHost, server->port(), "", 0, kLong).status()));
}

TEST(Store, AWaitingGetKeepsNoOtherCallWaiting) {
  const auto server = StartServer();
  const auto store = Connect(*server);
  std::vector<std::thread> waiting;
  for (int i = 0; i < 8; ++i) {
    waiting.emplace_back([&store, i] {
      EXPECT_EQ(*store->Get(absl::StrCat("late/", i / 2), kLong), "now");
    });
  }
  for (int i = 0; i < 100; ++i) EXPECT_EQ(*store->Add("n", 1), i + 1);
  for (int i = 0; i < 4; ++i) {
    EXPECT_TRUE(store->Set(absl::StrCat("late/", i), "now").ok());
  }
  for (std::thread& thread : waiting) thread.join();
}

TEST(Store, GetGivesUpAfterItsTimeout) {
  const auto server = StartServer();
  const auto store = Connect(*server);
  for (const absl::Duration timeout :
       {absl::ZeroDuration(), absl::Milliseconds(20)}) {
    const auto got = store->Get("never", timeout);
    EXPECT_TRUE(absl::IsDeadlineExceeded(got.status())) << got.status();
    EXPECT_TRUE(absl::StrContains(got.status().message(), "\"never\""));
  }
  EXPECT_TRUE(store->Set("never", "after all").ok());
  EXPECT_EQ(*store->Get("never", kLong), "after all");
}

TEST(Store, ManyClientsAtOnce) {
  constexpr int kClients = 256;
  const auto server = StartServer();
  std::vector<std::thread> clients;
  for (int rank = 0; rank < kClients; ++rank) {
    clients.emplace_back([&server, rank] {
      const auto store = Connect(*server, rank);
      ASSERT_TRUE(store->Set(absl::StrCat("rank/", rank), "here").ok());
      const auto neighbour =
          store->Get(absl::StrCat("rank/", (rank + 1) % kClients), kLong);
      EXPECT_EQ(*neighbour, "here");
      if (*store->Add("arrived", 1) == kClients) {
        EXPECT_TRUE(store->Set("all", "yes").ok());
      }
      EXPECT_EQ(*store->Get("all", kLong), "yes");
      store->Close();
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_TRUE(server->AwaitLeave(kClients, kLong));
  const auto store = Connect(*server);
  EXPECT_EQ(*store->Get("arrived", kLong), absl::StrCat(kClients));
  EXPECT_EQ(*store->SetOnce("failure", "none"), "none");  // all left in order
}

TEST(Store, AWrongKeyIsRefusedAtOnceOnBothSides) {
  const auto server = StartServer();
  Log log;
  const absl::Time start = absl::Now();
  const auto refused =
      Store::Connect(kHost, server->port(), "another", 3, kLong);
  EXPECT_LT(absl::Now() - start, absl::Seconds(1));
  EXPECT_TRUE(absl::IsPermissionDenied(refused.status())) << refused.status();
  EXPECT_EQ(refused.status().message(),
            absl::StrCat("rank 0's store at 127.0.0.1:", server->port(),
                         ": the store refused our key, wanted the key of "
                         "rank 0"));
  EXPECT_TRUE(log.Await(": rank 3 has another key than this store's"));
  const auto store = Connect(*server);
  EXPECT_EQ(*store->SetOnce("failure", "none"), "none");
}

TEST(Store, AServerThatDoesNotKnowTheKeyIsNotTrusted) {
  const auto listener = Listen(kHost, 0);
  ASSERT_TRUE(listener.ok());
  std::thread impostor([&] {
    fd_set readable;
    FD_ZERO(&readable);
    FD_SET(listener->fd(), &readable);
    ASSERT_EQ(select(listener->fd() + 1, &readable, nullptr, nullptr, nullptr),
              1);
    const Socket socket(accept(listener->fd(), nullptr, nullptr));
    EXPECT_TRUE(SendAll(socket, MakeHello(FreshNonce())).ok());
    EXPECT_TRUE(ReceiveExactly(socket, kProofBytes, absl::Now() + kLong).ok());
    EXPECT_TRUE(SendAll(socket, absl::StrCat("y", FreshNonce())).ok());
  });
  const auto store =
      Store::Connect(kHost, LocalPort(*listener), kKey, 0, kLong);
  impostor.join();
  EXPECT_TRUE(absl::IsPermissionDenied(store.status())) << store.status();
  EXPECT_TRUE(absl::StrContains(store.status().message(), "not our job's"));
}

TEST(Store, SomethingElseThatAnswersIsNamed) {
  const auto listener = Listen(kHost, 0);
  ASSERT_TRUE(listener.ok());
  // Silent, as torchrun's own store is: the kernel accepts for it.
  const auto silent = Store::Connect(kHost, LocalPort(*listener), kKey, 0,
                                     absl::Milliseconds(50));
  EXPECT_TRUE(absl::IsDeadlineExceeded(silent.status())) << silent.status();
  EXPECT_TRUE(absl::StrContains(silent.status().message(), "no answer"));
  EXPECT_FALSE(ReadHello("HTTP/1.1 400 Bad Request").ok());
}

TEST(Store, WaitsForAServerThatStartsLate) {
  int port;
  {
    const auto server = StartServer();
    port = server->port();
  }
  const auto nobody =
      Store::Connect(kHost, port, kKey, 0, absl::Milliseconds(30));
  EXPECT_TRUE(absl::IsDeadlineExceeded(nobody.status())) << nobody.status();
  EXPECT_TRUE(absl::StrContains(nobody.status().message(), "refused"));
  std::thread client([port] {
    const auto store = Store::Connect(kHost, port, kKey, 0, kLong);
    ASSERT_TRUE(store.ok()) << store.status();
    EXPECT_TRUE((*store)->Set("x", "1").ok());
    (*store)->Close();
  });
  const auto server = StartServer(kHost, port);
  client.join();
}

TEST(Store, NamesAndAddresses) {
  for (const std::string host : {"localhost", "127.0.0.1", "::1"}) {
    const auto server = StoreServer::Start(host, 0, kKey);
    if (host == "::1" && !server.ok()) {
      GTEST_SKIP() << "no IPv6 here: " << server.status();
    }
    ASSERT_TRUE(server.ok()) << server.status();
    const auto store = Connect(**server, 0, host);
    EXPECT_TRUE(store->Set("x", "1").ok());
  }
}

TEST(Store, AddressesThatCannotBe) {
  const auto server = StartServer();
  const auto taken = StoreServer::Start(kHost, server->port(), kKey);
  EXPECT_TRUE(absl::IsFailedPrecondition(taken.status())) << taken.status();
  EXPECT_TRUE(absl::StrContains(taken.status().message(),
                                absl::StrCat(":", server->port())));
  // RFC 5737: nobody has it.
  EXPECT_FALSE(StoreServer::Start("192.0.2.1", 0, kKey).ok());
  const auto unknown =
      Store::Connect("no-such-host.invalid", 1, kKey, 0, absl::Milliseconds(1));
  EXPECT_TRUE(
      absl::StrContains(unknown.status().message(), "no-such-host.invalid"))
      << unknown.status();
}

TEST(Store, LossOfTheServerEndsEveryCall) {
  auto server = StartServer();
  const auto store = Connect(*server);
  absl::Notification started;
  std::thread waiting([&] {
    absl::StatusOr<std::string> later;
    absl::Notification done;
    store->Start(Store::Op::kGet, "never", "",
                 [&](absl::StatusOr<std::string> value) {
                   later = std::move(value);
                   done.Notify();
                 });
    started.Notify();
    const auto got = store->Get("never", kLong);
    EXPECT_TRUE(absl::IsUnavailable(got.status())) << got.status();
    done.WaitForNotification();
    EXPECT_TRUE(absl::IsUnavailable(later.status())) << later.status();
  });
  started.WaitForNotification();
  const int port = server->port();
  server.reset();
  waiting.join();
  const absl::Status set = store->Set("x", "1");
  EXPECT_TRUE(absl::IsUnavailable(set)) << set;
  EXPECT_EQ(set.message(),
            absl::StrCat("rank 0's store at 127.0.0.1:", port, " is gone"));
  store->Close();
}

TEST(Store, ClosedStoresRefuseCalls) {
  const auto server = StartServer();
  const auto store = Connect(*server, 1);
  EXPECT_FALSE(server->AwaitLeave(1, absl::ZeroDuration()));
  store->Close();
  store->Close();
  EXPECT_TRUE(server->AwaitLeave(1, kLong));
  EXPECT_FALSE(server->AwaitLeave(2, absl::ZeroDuration()));  // one never came
  EXPECT_TRUE(absl::IsCancelled(store->Set("x", "1")));
  EXPECT_EQ(*Connect(*server)->SetOnce("failure", "none"), "none");
}

TEST(Store, AKilledProcessIsAFailure) {
  int to_child[2];
  ASSERT_EQ(pipe(to_child), 0);
  const pid_t child = fork();  // while this process has one thread
  if (child == 0) {
    int port;
    if (read(to_child[0], &port, sizeof(port)) != sizeof(port)) _exit(1);
    const auto store = Store::Connect(kHost, port, kKey, 7, kLong);
    if (!store.ok() || !(*store)->Set("up", "yes").ok()) _exit(1);
    pause();
  }
  const auto server = StartServer();
  const auto store = Connect(*server, 0);
  const int port = server->port();
  ASSERT_EQ(write(to_child[1], &port, sizeof(port)), ssize_t{sizeof(port)});
  EXPECT_EQ(*store->Get("up", kLong), "yes");
  ASSERT_EQ(kill(child, SIGKILL), 0);
  EXPECT_EQ(*store->Get("failure", kLong), "rank 7's process ended");
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  // The first failure stays.
  Connect(*server, 5).reset();
  EXPECT_EQ(*store->SetOnce("failure", "x"), "rank 7's process ended");
}

}  // namespace
}  // namespace mimo
