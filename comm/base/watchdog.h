// Watchdog: the thread of a process that sees that communication goes on.
//
// It fails a communicator whose oldest unfinished operation is older than the
// timeout or that reports an error of its own, and with it every communicator
// it watches, here and, over the board, on all ranks of the world: a world
// that lost a rank is over. Each rank then logs one line: operation, sequence
// number, group name, members, and who is missing, or what another rank called
// instead. Nothing on the way of an operation takes a lock for it.
#ifndef MIMO_COMM_BASE_WATCHDOG_H_
#define MIMO_COMM_BASE_WATCHDOG_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "comm/base/communicator.h"

namespace mimo {

// Where the ranks of a world tell each other of a failure (the store between
// processes; shared memory between threads).
class FailureBoard {
 public:
  virtual ~FailureBoard() = default;
  // Tells all ranks that the world has failed. Only the first reason counts.
  virtual void Raise(const std::string& reason) = 0;
  // The reason, once some rank raised it or a rank's process ended; else "".
  // Does not wait.
  virtual std::string Raised() = 0;
  // What this rank was doing in `group` when the world failed, for the others.
  virtual void Post(const std::string& group, const std::string& operation) = 0;
  // What the world's rank `rank` posted for `group`, waiting at most until
  // `deadline`; "" if nothing came.
  virtual std::string Posted(const std::string& group, int rank,
                             absl::Time deadline) = 0;
};

}  // namespace mimo

#endif  // MIMO_COMM_BASE_WATCHDOG_H_
