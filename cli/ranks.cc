#include "cli/ranks.h"

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "comm/base/watchdog.h"
#include "comm/gloo/gloo_communicator.h"
#include "comm/inproc/inproc.h"
#include "comm/rendezvous/store.h"
#include "comm/rendezvous/store_board.h"
#include "kernels/base/on_cuda.h"
#include "kernels/base/status_macros.h"

#ifdef MIMO_CUDA
#include "comm/nccl/nccl_communicator.h"
#endif

namespace mimo {
namespace {

// For processes that start together, and for rank 0's reading of the config.
constexpr absl::Duration kMeet = absl::Minutes(5), kPrepare = absl::Minutes(10);
// For a rank that has failed to hear of, or be heard by, the others.
constexpr absl::Duration kLastWords = absl::Seconds(5);

absl::Status RunThreads(int threads, absl::Duration timeout, RankBody body) {
  absl::Mutex mutex;
  absl::Status first;
  const auto statuses = RunRanks(
      threads,
      [&](Communicator& world) {
        absl::Status status = body(&world);
        // A failure of the world's is another rank's.
        if (!status.ok() && world.Health().ok()) {
          absl::MutexLock lock(&mutex);
          first.Update(status);
        }
        return status;
      },
      timeout);
  for (const absl::Status& status : statuses) first.Update(status);
  return first;
}

absl::StatusOr<std::unique_ptr<Communicator>> Connect(
    const Job& job, Store& store, const RankOptions& options) {
  if (options.device == Device::kCpu)
    return ConnectGloo(job, store, {.timeout = options.timeout});
  MIMO_ON_CUDA(ConnectNccl(job, store, {.timeout = options.timeout}));
}

// Tells the others that this rank failed; true if it is the first.
absl::StatusOr<bool> Raise(const Job& job, Store& store,
                           const absl::Status& status) {
  const std::string own = OwnFailure(job.rank, status);
  MIMO_ASSIGN_OR_RETURN(const std::string first,
                        RaiseFirst(store, own, kLastWords));
  return first == own;
}

absl::Status RunSteps(const Job& job, Store& store, const RankOptions& options,
                      SetUp set_up, RankBody body,
                      std::unique_ptr<Communicator>& world) {
  constexpr char kReady[] = "set up";
  if (job.rank > 0) {
    const absl::Status found = store.Get(kReady, kPrepare).status();
    if (absl::IsDeadlineExceeded(found)) {
      return absl::DeadlineExceededError(
          absl::StrCat("rank 0 has not read the config within ",
                       absl::FormatDuration(kPrepare)));
    }
    MIMO_RETURN_IF_ERROR(found);
  }
  const absl::Status ready = set_up();
  if (job.rank == 0) {
    // A mistake that all will find is rank 0's to tell.
    if (!ready.ok()) static_cast<void>(Raise(job, store, ready));
    MIMO_RETURN_IF_ERROR(store.Set(kReady, ""));
  }
  MIMO_RETURN_IF_ERROR(ready);
  MIMO_ASSIGN_OR_RETURN(world, Connect(job, store, options));
  return body(world.get());
}

absl::Status RunProcess(const Job& job, const RankOptions& options,
                        SetUp set_up, RankBody body) {
  std::unique_ptr<StoreServer> server;
  if (job.rank == 0) {
    MIMO_ASSIGN_OR_RETURN(server,
                          StoreServer::Start(job.host, job.port, job.key));
  }
  MIMO_ASSIGN_OR_RETURN(
      const auto store,
      Store::Connect(job.host, job.port, job.key, job.rank, kMeet));
  // Kept until the others know why it ends.
  std::unique_ptr<Communicator> world;
  absl::Status status = RunSteps(job, *store, options, set_up, body, world);
  if (!status.ok()) {
    const absl::StatusOr<bool> first = Raise(job, *store, status);
    const bool failed = world != nullptr && !world->Health().ok();
    if (!first.value_or(!failed)) status = absl::Status(status.code(), "");
  }
  world = nullptr;
  store->Close();
  if (server != nullptr) server->AwaitLeave(status.ok() ? kMeet : kLastWords);
  return status;
}

}  // namespace

absl::Status RunOnRanks(const Job& job, int threads, const RankOptions& options,
                        SetUp set_up, RankBody body) {
  if (job.world_size > 1) return RunProcess(job, options, set_up, body);
  MIMO_RETURN_IF_ERROR(set_up());
  return threads == 1 ? body(nullptr)
                      : RunThreads(threads, options.timeout, body);
}

}  // namespace mimo
