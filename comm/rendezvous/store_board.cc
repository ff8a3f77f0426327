#include "comm/rendezvous/store_board.h"

#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"

namespace mimo {
namespace {

constexpr char kFailure[] = "failure";  // StoreServer sets it too

void Ignore(absl::StatusOr<std::string>) {}

// The first one stays.
void SetFailure(Store& store, const std::string& reason) {
  store.Start(Store::Op::kSetOnce, kFailure, reason, Ignore);
}

std::string PostKey(const std::string& group, int rank) {
  return absl::StrCat("board/", rank, "/", group);
}

// Shared with the store's calls under way, which may outlive the board.
class Reason {
 public:
  // The first one stays.
  void Set(std::string reason) {
    absl::MutexLock lock(&mutex_);
    if (reason_.empty()) reason_ = std::move(reason);
  }
  std::string Get() {
    absl::MutexLock lock(&mutex_);
    return reason_;
  }

 private:
  absl::Mutex mutex_;
  std::string reason_ ABSL_GUARDED_BY(mutex_);
};

class StoreBoard final : public FailureBoard {
 public:
  StoreBoard(Store& store, int rank) : store_(store), rank_(rank) {
    store_.Start(Store::Op::kGet, kFailure, "",
                 [reason = reason_](absl::StatusOr<std::string> value) {
                   if (value.ok()) {
                     reason->Set(*std::move(value));
                   } else if (absl::IsUnavailable(value.status())) {
                     reason->Set("rank 0's store is gone");
                   }
                 });
  }

  void Raise(const std::string& reason) override {
    // Here at once, for a server that hangs tells nobody.
    reason_->Set(reason);
    SetFailure(store_, reason);
  }

  std::string Raised() override { return reason_->Get(); }

  void Post(const std::string& group, const std::string& operation) override {
    store_.Start(Store::Op::kSet, PostKey(group, rank_), operation, Ignore);
  }

  std::string Posted(const std::string& group, int rank,
                     absl::Time deadline) override {
    return store_.Get(PostKey(group, rank), deadline - absl::Now())
        .value_or("");
  }

 private:
  Store& store_;
  const int rank_;
  const std::shared_ptr<Reason> reason_ = std::make_shared<Reason>();
};

}  // namespace

std::unique_ptr<FailureBoard> NewStoreBoard(Store& store, int rank) {
  return std::make_unique<StoreBoard>(store, rank);
}

absl::StatusOr<std::string> RaiseFirst(Store& store, const std::string& reason,
                                       absl::Duration timeout) {
  SetFailure(store, reason);
  return store.Get(kFailure, timeout);
}

}  // namespace mimo
