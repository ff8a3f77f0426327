// Watchdog: the thread of a process that sees that communication goes on.
//
// It fails a communicator that makes no progress for the timeout or that
// reports an error of its own, and with it every communicator it watches, here
// and, over the board, on all ranks of the world: a world that lost a rank is
// over. Each rank then logs one line, which Health gives too: operation,
// sequence number, group name, members, and who is missing, or what another
// rank called instead; but none where a rank raises an OwnFailure, which that
// rank tells. Nothing on the way of an operation takes a lock for it.
// If MIMO_OPERATIONS_DUMP names a folder, rank N writes the records of all its
// communicators (their last Communicator::kKept operations) to rank_N.txt
// there.
//
// The last part of the timeout (a quarter, at most a second) is for asking the
// other ranks, so that within the timeout every waiting call has returned.
// Health is kDeadlineExceeded when a rank hangs, kUnavailable when one ended,
// kFailedPrecondition when ranks made different calls.
#ifndef MIMO_COMM_BASE_WATCHDOG_H_
#define MIMO_COMM_BASE_WATCHDOG_H_

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "comm/base/communicator.h"

namespace mimo {

// What rank `rank` raises that fails by itself: the others fail with the same
// code. "INVALID_ARGUMENT: rank 2 failed: ..."
std::string OwnFailure(int rank, const absl::Status& status);
// Whether `reason` is one of these, of whichever rank.
bool IsOwnFailure(absl::string_view reason);

// Where the ranks of a world tell each other of a failure (the store between
// processes; shared memory between threads).
class FailureBoard {
 public:
  virtual ~FailureBoard() = default;
  // Tells all ranks that the world has failed. Only the first reason counts. A
  // watchdog's reason begins with its status code ("DEADLINE_EXCEEDED: ...");
  // any other is read as kUnavailable ("rank 3's process ended").
  virtual void Raise(const std::string& reason) = 0;
  // The reason, once some rank raised it or a rank's process ended; else "".
  // Does not wait.
  virtual std::string Raised() = 0;
  // For the others: what this rank was doing in `group` when the world failed,
  // or in which other group it waited.
  virtual void Post(const std::string& group, const std::string& operation) = 0;
  // What the world's rank `rank` posted for `group`, waiting at most until
  // `deadline`; "" if nothing came.
  virtual std::string Posted(const std::string& group, int rank,
                             absl::Time deadline) = 0;
};

class Watchdog {
 public:
  // Of the world's rank `rank`. Communicator::WatchWith hands it communicators,
  // which keep it alive.
  Watchdog(int rank, std::shared_ptr<FailureBoard> board,
           absl::Duration timeout = absl::Seconds(60));
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  friend class Communicator;

  struct Watched {
    Communicator* communicator;
    int64_t completed = -1;  // when last looked at; -1 if idle then
    std::chrono::steady_clock::time_point since;  // when that was first seen
  };
  // What one communicator was doing when the world failed.
  struct Doing {
    std::string group;
    std::vector<int> members;
    // The oldest unfinished one, else the newest, else none.
    std::optional<Operation> operation;
    std::vector<std::string> collectives;  // of the record, oldest first

    std::string ToString() const;
  };

  void Add(Communicator* communicator);
  // When it returns, no other thread uses the communicator, which has failed if
  // another one has.
  void Remove(Communicator* communicator);

  void Run();
  // Why the world fails, or OK.
  absl::Status Look() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static Doing Describe(const Communicator& communicator);
  // What `members` posted; "" of those that did not in time, or when the
  // destructor waits.
  std::vector<std::string> Ask(const std::string& group,
                               const std::vector<int>& members,
                               absl::Time deadline);
  // `reason` in the words of one communicator, with what the others were doing.
  absl::Status Explain(const Doing& doing, const Doing& world,
                       const absl::Status& reason);
  void FailAll(const absl::Status& reason);

  const int rank_;
  const std::shared_ptr<FailureBoard> board_;
  const absl::Duration interval_, asking_, limit_;
  absl::Mutex mutex_;
  std::vector<Watched> watched_ ABSL_GUARDED_BY(mutex_);
  absl::Status over_ ABSL_GUARDED_BY(mutex_);  // why, once the world has failed
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace mimo

#endif  // MIMO_COMM_BASE_WATCHDOG_H_
