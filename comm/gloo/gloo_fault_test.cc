// Ranks killed, stopped or gone astray at random points of a loop of
// collectives between processes. The others must never hang past the timeout
// nor take a wrong result for right, and each must say in one line what it was
// doing and who is missing or differs.
#include <signal.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/log/check.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "comm/gloo/gloo_communicator.h"
#include "comm/testing/rank_processes.h"
#include "gtest/gtest.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(2);
constexpr absl::Duration kLong = absl::Minutes(2);
constexpr int kCalls = 10000;  // of a loop, ended by a fault long before

enum Fault {
  kKill,
  kStop,
  kOtherOperation,
  kOtherCount,
  kSkip,
  kExtra,
  kKinds
};

int FromEnvironment(const char* name) {
  const char* text = std::getenv(name);
  int value = 0;
  CHECK(text != nullptr && absl::SimpleAtoi(text, &value)) << name;
  return value;
}

// What rank `rank` brings to element i of call `call`.
int64_t Value(int call, int rank, int64_t i) {
  return (call * 1000003 + rank * 7919 + i * 31) % 1000;
}

// Calls follow one another that no rank can take for each other: neighbours
// differ in their counts.
int64_t CountOf(int call) {
  return std::vector<int64_t>{1, 100, 3000, 70001}[call % 4] + call % 7;
}

// One collective, and whether its result is right.
class Loop {
 public:
  explicit Loop(Communicator& group) : group_(group) {}

  // As a rank should, or with another operation or count.
  bool Make(int call, bool other_operation = false, bool other_count = false) {
    const int64_t count = CountOf(call) + other_count, n = group_.size();
    const int kind = (call / 2 + other_operation) % 4;
    constexpr DType kI64 = DType::kInt64;
    std::vector<int64_t> in(n * count), out(n * count, -1), wanted;
    for (int64_t i = 0; i < n * count; ++i)
      in[i] = Value(call, group_.rank(), i);
    const auto Sum = [&](int64_t i) {
      int64_t sum = 0;
      for (int p = 0; p < n; ++p) sum += Value(call, p, i);
      return sum;
    };
    switch (kind) {
      case 0:
        group_.AllReduce(in.data(), out.data(), count, kI64, ReduceOp::kSum,
                         Stream{});
        for (int64_t i = 0; i < count; ++i) wanted.push_back(Sum(i));
        break;
      case 1:
        group_.ReduceScatter(in.data(), out.data(), count, kI64, ReduceOp::kSum,
                             Stream{});
        for (int64_t i = 0; i < count; ++i)
          wanted.push_back(Sum(group_.rank() * count + i));
        break;
      case 2:
        group_.AllGather(in.data(), out.data(), count, kI64, Stream{});
        for (int p = 0; p < n; ++p)
          for (int64_t i = 0; i < count; ++i)
            wanted.push_back(Value(call, p, i));
        break;
      case 3:
        out = in;
        group_.Broadcast(out.data(), count, kI64, call % n, Stream{});
        for (int64_t i = 0; i < count; ++i)
          wanted.push_back(Value(call, call % n, i));
        break;
    }
    if (!group_.Health().ok()) return true;  // nothing counts now
    out.resize(wanted.size());
    return out == wanted;
  }

 private:
  Communicator& group_;
};

// Runs the loop until the world fails. FAULT (a Fault), CULPRIT and PLACE say
// who goes astray and when; the end or stop comes some moments later, within
// any call.
absl::Status LoopBody(const Job& job, Store& store) {
  const int fault = FromEnvironment("FAULT"), place = FromEnvironment("PLACE");
  const bool culprit = FromEnvironment("CULPRIT") == job.rank;
  MIMO_ASSIGN_OR_RETURN(auto world,
                        ConnectGloo(job, store, {.timeout = kTimeout}));
  std::vector<int> all(job.world_size);
  for (int r = 0; r < job.world_size; ++r) all[r] = r;
  MIMO_ASSIGN_OR_RETURN(auto group, world->Split("group", {all}));
  Loop loop(*group);
  absl::Time last = absl::Now();
  for (int call = 0; call < kCalls && group->Health().ok(); ++call) {
    last = absl::Now();
    const bool now = culprit && call == place;
    if (now && (fault == kKill || fault == kStop))
      std::thread([fault, place] {
        absl::SleepFor(absl::Microseconds(place * 7919 % 3000));
        raise(fault == kKill ? SIGKILL : SIGSTOP);
      }).detach();
    if (now && fault == kSkip) continue;
    if (!loop.Make(call, now && fault == kOtherOperation,
                   now && fault == kOtherCount) ||
        (now && fault == kExtra && !loop.Make(call)))
      return absl::DataLossError(absl::StrCat("call ", call, ": wrong result"));
  }
  const absl::Duration waited = absl::Now() - last;
  if (group->Health().ok()) return absl::InternalError("no failure was seen");
  std::cout << "waited " << absl::ToInt64Milliseconds(waited) << " ms\n"
            << "health: " << group->Health() << std::endl;
  return absl::OkStatus();
}

// How one world went.
struct Report {
  std::string wrong;    // "" if nothing
  int64_t longest = 0;  // ms that a surviving rank waited
};

int Lines(const std::string& text, const std::string& what) {
  int lines = 0;
  for (const absl::string_view line : absl::StrSplit(text, '\n'))
    lines += absl::StrContains(line, what);
  return lines;
}

Report RunWorld(int run) {
  std::mt19937_64 random(run);
  const int fault = run % kKinds, size = 2 + random() % 3,
            culprit = random() % size, place = random() % 150;
  const std::string what =
      absl::StrCat("run ", run, ": fault ", fault, " of rank ", culprit, " of ",
                   size, " at call ", place, ": ");
  RankProcesses ranks(
      size, "loop",
      {absl::StrCat("FAULT=", fault), absl::StrCat("CULPRIT=", culprit),
       absl::StrCat("PLACE=", place)});
  Report report;
  const absl::Time deadline = absl::Now() + kLong;
  for (int rank = 0; rank < size; ++rank) {
    if (rank == culprit && (fault == kKill || fault == kStop)) continue;
    const int status = ranks.Wait(rank, deadline);
    const std::string output = ranks.Output(rank);
    const size_t at = output.find("\nwaited ");
    int64_t waited = 0;
    if (at != output.npos)
      waited = std::strtoll(output.c_str() + at + 8, nullptr, 10);
    report.longest = std::max(report.longest, waited);
    // One line says what was called, where, among whom, and who is at fault. A
    // rank may learn of it between two calls.
    const bool between =
        Lines(output, ": in no operation; first report: ") == 2;
    const bool said =
        (between || (Lines(output, "sequence ") == 2 &&  // the log's, Health's
                     Lines(output, " in group group of ranks [0, 1") == 2)) &&
        (rank == culprit ||
         absl::StrContains(output, absl::StrCat("rank ", culprit)));
    if (status != 0 || !said)
      absl::StrAppend(&report.wrong, what, "rank ", rank, " ended with ",
                      status, ":\n", output, "\n");
  }
  return report;
}

TEST(GlooFaults, NeverAHangNorAWrongSum) {
  constexpr int kRuns = 200;
  // Worlds mostly wait for their timeouts: some at once.
  constexpr int kAtOnce = 4;
  absl::Mutex mutex;
  int next = 0;
  std::vector<Report> reports(kRuns);
  std::vector<std::thread> threads;
  for (int i = 0; i < kAtOnce; ++i) {
    threads.emplace_back([&] {
      while (true) {
        mutex.Lock();
        const int run = next++;
        mutex.Unlock();
        if (run >= kRuns) return;
        reports[run] = RunWorld(run);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  int64_t longest = 0, longest_killed = 0;
  for (int run = 0; run < kRuns; ++run) {
    EXPECT_EQ(reports[run].wrong, "");
    longest = std::max(longest, reports[run].longest);
    if (run % kKinds == kKill)
      longest_killed = std::max(longest_killed, reports[run].longest);
  }
  std::cout << kRuns << " worlds; longest wait " << longest << " ms, of a kill "
            << longest_killed << " ms\n";
  // A loaded machine may be late.
  EXPECT_LT(longest, 3 * absl::ToInt64Milliseconds(kTimeout));
  EXPECT_LT(longest_killed, absl::ToInt64Milliseconds(kTimeout));
}

}  // namespace
}  // namespace mimo

int main(int argc, char** argv) {
  mimo::RunRankIfAsked({{"loop", mimo::LoopBody}});
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
