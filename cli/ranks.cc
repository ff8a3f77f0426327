#include "cli/ranks.h"

#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/log/log.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "cli/end.h"
#include "comm/base/watchdog.h"
#include "comm/gloo/gloo_communicator.h"
#include "comm/inproc/inproc.h"
#include "comm/rendezvous/launcher.h"
#include "comm/rendezvous/store.h"
#include "comm/rendezvous/store_board.h"
#include "kernels/base/on_cuda.h"
#include "kernels/base/status_macros.h"

#ifdef MIMO_CUDA
#include "comm/nccl/nccl_communicator.h"
#endif

namespace mimo {
namespace {

// For a rank that has failed to hear of, or be heard by, the others.
constexpr absl::Duration kLastWords = absl::Seconds(5);
// For a rank to come to where it hears that the world has failed.
constexpr absl::Duration kGrace = absl::Seconds(10);

// Set by a rank once it is prepared, and by rank 0 once all are.
constexpr char kPrepared[] = "prepared/", kMet[] = "met/";

absl::Status RunThreads(int threads, absl::Duration timeout, RankBody body) {
  absl::Mutex mutex;
  // A rank's own failure, and any: one of the world's is another rank's.
  absl::Status own, any;
  bool done = false;
  // Ends the process, with all its ranks, if one of them hangs in what it reads
  // or computes when another has failed.
  std::jthread ender([&] {
    const auto over = [&] { return done || !any.ok(); };
    absl::MutexLock lock(&mutex, absl::Condition(&over));
    if (mutex.AwaitWithTimeout(absl::Condition(&done), kGrace)) return;
    own.Update(any);
    std::_Exit(End(own));
  });
  const auto statuses = RunRanks(
      threads,
      [&](Communicator& world) {
        Kept kept;
        absl::Status status = body(&world, kept);
        absl::MutexLock lock(&mutex);
        if (world.Health().ok()) own.Update(status);
        any.Update(status);
        return status;
      },
      timeout);
  absl::MutexLock lock(&mutex);
  done = true;
  for (const absl::Status& status : statuses) own.Update(status);
  return own;
}

absl::StatusOr<std::unique_ptr<Communicator>> Connect(
    const Job& job, Store& store, const RankOptions& options) {
  if (options.device == Device::kCpu)
    return ConnectGloo(job, store, {.timeout = options.timeout});
  MIMO_ON_CUDA(ConnectNccl(job, store, {.timeout = options.timeout}));
}

// Waits until each of the first `ranks` ranks has set `key`.
absl::Status Await(absl::string_view key, int ranks, Store& store,
                   FailureBoard& board, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  std::vector<int> missing;
  for (int rank = 0; rank < ranks; ++rank) {
    const absl::Status set =
        GetUnlessFailed(store, board, absl::StrCat(key, rank),
                        deadline - absl::Now())
            .status();
    if (absl::IsDeadlineExceeded(set)) {
      missing.push_back(rank);
    } else {
      MIMO_RETURN_IF_ERROR(set);
    }
  }
  if (missing.empty()) return absl::OkStatus();
  return absl::DeadlineExceededError(absl::StrCat(
      missing.size() == 1 ? "rank " : "ranks ", absl::StrJoin(missing, ", "),
      " did not come within ", absl::FormatDuration(timeout)));
}

// Leaves `world` null unless all ranks met.
absl::Status RunSteps(const Job& job, Store& store, FailureBoard& board,
                      const RankOptions& options, const absl::Status& read,
                      SetUp prepare, RankBody body,
                      std::unique_ptr<Communicator>& world, Kept& kept) {
  if (job.rank > 0) {
    MIMO_RETURN_IF_ERROR(Await(kPrepared, 1, store, board, options.timeout));
  }
  // A mistake that all will find is rank 0's to tell.
  MIMO_RETURN_IF_ERROR(read);
  MIMO_RETURN_IF_ERROR(prepare());
  MIMO_RETURN_IF_ERROR(store.Set(absl::StrCat(kPrepared, job.rank), ""));
  // Rank 0 waits for all, the others for its word of that, or of who is
  // missing.
  if (job.rank == 0) {
    MIMO_RETURN_IF_ERROR(
        Await(kPrepared, job.world_size, store, board, options.timeout));
    MIMO_RETURN_IF_ERROR(store.Set(absl::StrCat(kMet, 0), ""));
  } else {
    MIMO_RETURN_IF_ERROR(
        Await(kMet, 1, store, board, options.timeout + kLastWords));
  }
  MIMO_ASSIGN_OR_RETURN(world, Connect(job, store, options));
  return body(world.get(), kept);
}

// Ends the process if the world fails while this rank reads or computes, waits
// for no other and so does not hear of it.
void EndWithWorld(FailureBoard& board, const absl::Notification& done) {
  while (!done.WaitForNotificationWithTimeout(absl::Milliseconds(50))) {
    const std::string raised = board.Raised();
    if (raised.empty() || done.WaitForNotificationWithTimeout(kGrace)) continue;
    LOG(ERROR) << raised << ", " << kGrace
               << " ago; this rank ends in the middle of what it does";
    std::_Exit(kFailedAfterAnother);
  }
}

// Tells the others why this rank fails, or hears why they do; what is left for
// this one to say.
absl::Status Settle(const Job& job, Store& store, FailureBoard& board,
                    const absl::Status& status, const Communicator* world) {
  // By the watchdog.
  const bool told = world != nullptr && !world->Health().ok();
  // Who waited in vain is not who failed.
  const std::string own = world == nullptr && absl::IsDeadlineExceeded(status)
                              ? std::string(status.message())
                              : OwnFailure(job.rank, status);
  // Heard before, when rank 0 may be gone by now. Where it hangs, nobody
  // answers.
  std::string first = board.Raised();
  if (first.empty()) first = RaiseFirst(store, own, kLastWords).value_or(own);
  if (first == own && IsOwnFailure(own) && !told) return status;
  if (world == nullptr && !IsOwnFailure(first)) LOG(ERROR) << first;
  return absl::Status(status.code(), "");
}

// Until the watchdog has heard why the world fails, and aborts all groups; not
// where rank 0 hangs.
void AwaitAbort(Communicator& world, const absl::Status& why) {
  const absl::Time deadline = absl::Now() + kLastWords;
  while (world.Health().ok() && absl::Now() < deadline)
    absl::SleepFor(absl::Milliseconds(1));
  world.Abort(why);
}

// Frees what a rank with `status` has, or ends its process by it, as its
// readers, too, may hang in what they read.
void FreeOrEnd(const absl::Status& status, std::unique_ptr<Communicator>& world,
               Kept& kept) {
  absl::Notification freed;
  std::jthread ender([&] {
    if (!freed.WaitForNotificationWithTimeout(kLastWords))
      std::_Exit(End(status));
  });
  kept = nullptr;
  world = nullptr;
  freed.Notify();
}

absl::Status RunProcess(const Job& job, const RankOptions& options, SetUp read,
                        SetUp prepare, RankBody body) {
  const absl::Status ready = read();
  std::unique_ptr<StoreServer> server;
  if (job.rank == 0) {
    MIMO_ASSIGN_OR_RETURN(server,
                          StoreServer::Start(job.host, job.port, job.key));
  }
  auto store = Store::Connect(job.host, job.port, job.key, job.rank,
                              ready.ok() ? options.timeout : kLastWords);
  if (absl::IsDeadlineExceeded(store.status())) {
    MIMO_RETURN_IF_ERROR(ready);
    LOG(ERROR) << store.status().message();
    return absl::DeadlineExceededError("");
  }
  MIMO_RETURN_IF_ERROR(store.status());
  const auto board = NewStoreBoard(**store, job.rank);
  // Both last until the others know why they end.
  std::unique_ptr<Communicator> world;
  Kept kept;
  absl::Notification done;
  std::jthread watcher([&] { EndWithWorld(*board, done); });
  absl::Status status = RunSteps(job, **store, *board, options, ready, prepare,
                                 body, world, kept);
  if (status.ok()) {
    kept = nullptr;
    world = nullptr;
    done.Notify();
  } else {
    status = Settle(job, **store, *board, status, world.get());
    if (world != nullptr) AwaitAbort(*world, status);
    done.Notify();
    FreeOrEnd(status, world, kept);
  }
  (*store)->Close();
  if (server != nullptr) {
    server->AwaitLeave(job.world_size,
                       status.ok() ? options.timeout : kLastWords);
  }
  return status;
}

}  // namespace

absl::Status RunOnRanks(const Job& job, int threads, const RankOptions& options,
                        SetUp read, SetUp prepare, RankBody body) {
  if (job.world_size > 1) return RunProcess(job, options, read, prepare, body);
  MIMO_RETURN_IF_ERROR(read());
  MIMO_RETURN_IF_ERROR(prepare());
  Kept kept;
  return threads == 1 ? body(nullptr, kept)
                      : RunThreads(threads, options.timeout, body);
}

}  // namespace mimo
