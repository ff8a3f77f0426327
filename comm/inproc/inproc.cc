#include "comm/inproc/inproc.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>
#include <string>
#include <thread>
#include <utility>

#include "absl/log/check.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "comm/base/watchdog.h"
#include "comm/inproc/group.h"
#include "comm/inproc/inproc_communicator.h"

namespace mimo {
namespace {

// What the ranks' boards share.
struct SharedBoard {
  absl::Mutex mutex;
  std::string raised ABSL_GUARDED_BY(mutex);
  std::map<std::pair<std::string, int>, std::string> posts
      ABSL_GUARDED_BY(mutex);  // by group and rank
};

class InprocBoard : public FailureBoard {
 public:
  InprocBoard(std::shared_ptr<SharedBoard> shared, int rank)
      : shared_(std::move(shared)), rank_(rank) {}

  void Raise(const std::string& reason) override {
    absl::MutexLock lock(&shared_->mutex);
    if (shared_->raised.empty()) shared_->raised = reason;
  }
  std::string Raised() override {
    absl::MutexLock lock(&shared_->mutex);
    return shared_->raised;
  }
  void Post(const std::string& group, const std::string& operation) override {
    absl::MutexLock lock(&shared_->mutex);
    shared_->posts[{group, rank_}] = operation;
  }
  std::string Posted(const std::string& group, int rank,
                     absl::Time deadline) override {
    absl::MutexLock lock(&shared_->mutex);
    const auto Found = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
      return shared_->posts.contains({group, rank});
    };
    if (!shared_->mutex.AwaitWithDeadline(absl::Condition(&Found), deadline))
      return "";
    return shared_->posts[{group, rank}];
  }

 private:
  const std::shared_ptr<SharedBoard> shared_;
  const int rank_;
};

std::vector<std::unique_ptr<Communicator>> WorldOf(
    int size, absl::Duration timeout, std::shared_ptr<SharedBoard> board) {
  CHECK_GE(size, 1) << "InprocWorld: found and wanted ranks";
  std::vector<int> members(size);
  std::iota(members.begin(), members.end(), 0);
  auto group = std::make_shared<InprocGroup>("world", std::move(members));
  std::vector<std::unique_ptr<Communicator>> world;
  for (int rank = 0; rank < size; ++rank) {
    world.push_back(std::make_unique<InprocCommunicator>(
        group, rank, std::make_shared<InprocPresence>()));
    world[rank]->WatchWith(std::make_shared<Watchdog>(
        rank, std::make_shared<InprocBoard>(board, rank), timeout));
  }
  return world;
}

}  // namespace

std::vector<std::unique_ptr<Communicator>> InprocWorld(int size,
                                                       absl::Duration timeout) {
  return WorldOf(size, timeout, std::make_shared<SharedBoard>());
}

std::vector<absl::Status> RunRanks(
    int size, absl::FunctionRef<absl::Status(Communicator& world)> body,
    absl::Duration timeout) {
  const auto board = std::make_shared<SharedBoard>();
  auto world = WorldOf(size, timeout, board);
  std::vector<absl::Status> statuses(size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      absl::Status status = body(*world[rank]);
      if (status.ok()) {
        status = world[rank]->Health();
      } else {
        InprocBoard(board, rank).Raise(OwnFailure(rank, status));
        // By the watchdog, before the others find that it has left.
        while (world[rank]->Health().ok())
          absl::SleepFor(absl::Milliseconds(1));
      }
      statuses[rank] = std::move(status);
      world[rank] = nullptr;
    });
  }
  for (std::thread& thread : threads) thread.join();
  return statuses;
}

}  // namespace mimo
