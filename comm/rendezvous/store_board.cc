#include "comm/rendezvous/store_board.h"

#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"

namespace mimo {
namespace {

constexpr char kFailure[] = "failure";  // StoreServer sets it too
constexpr char kGone[] = "rank 0's store is gone";
constexpr absl::Duration kLook = absl::Milliseconds(50);  // whether it failed

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
                     reason->Set(kGone);
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

absl::StatusOr<std::string> GetUnlessFailed(Store& store, FailureBoard& board,
                                            const std::string& key,
                                            absl::Duration timeout) {
  struct Answer {
    absl::Notification given;
    absl::StatusOr<std::string> value;
  };
  auto answer = std::make_shared<Answer>();
  store.Start(Store::Op::kGet, key, "",
              [answer](absl::StatusOr<std::string> value) {
                answer->value = std::move(value);
                answer->given.Notify();
              });
  const absl::Time deadline = absl::Now() + timeout;
  while (!answer->given.WaitForNotificationWithTimeout(kLook)) {
    if (const std::string raised = board.Raised(); !raised.empty())
      return absl::AbortedError(raised);
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat(
          "nobody set \"", key, "\" within ", absl::FormatDuration(timeout)));
    }
  }
  return answer->value;
}

absl::Status OrFailure(FailureBoard& board, const absl::Status& error) {
  if (error.ok()) return error;
  const absl::Time deadline = absl::Now() + absl::Seconds(1);
  while (board.Raised().empty() && absl::Now() < deadline)
    absl::SleepFor(absl::Milliseconds(1));
  const std::string raised = board.Raised();
  return raised.empty() ? error : absl::AbortedError(raised);
}

absl::StatusOr<std::string> RaiseFirst(Store& store, const std::string& reason,
                                       absl::Duration timeout) {
  SetFailure(store, reason);
  const absl::StatusOr<std::string> first = store.Get(kFailure, timeout);
  return absl::IsUnavailable(first.status()) ? kGone : first;
}

}  // namespace mimo
