// The failure board of a world of processes, kept in its store.
#ifndef MIMO_COMM_RENDEZVOUS_STORE_BOARD_H_
#define MIMO_COMM_RENDEZVOUS_STORE_BOARD_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "comm/base/watchdog.h"
#include "comm/rendezvous/store.h"

namespace mimo {

// The board of the world's rank `rank`, over the store's keys "failure" and
// "board/...". What is raised or posted is on its way when the call returns;
// only Posted waits. The loss of the server is a failure, "rank 0's store is
// gone"; this rank's own Close is none. The store must outlive the board.
std::unique_ptr<FailureBoard> NewStoreBoard(Store& store, int rank);

// The value of `key`, waited for at most `timeout` and not on when the world
// has failed: kAborted, the reason.
absl::StatusOr<std::string> GetUnlessFailed(Store& store, FailureBoard& board,
                                            const std::string& key,
                                            absl::Duration timeout);

// `error`, or, of a world that turns out within a second to have failed,
// kAborted, the reason: a rank that ended is first seen as a lost connection.
absl::Status OrFailure(FailureBoard& board, const absl::Status& error);

// Raises `reason` and waits for the one that counts: the first, or that the
// server is gone. Error: it does not answer.
absl::StatusOr<std::string> RaiseFirst(Store& store, const std::string& reason,
                                       absl::Duration timeout);

}  // namespace mimo

#endif  // MIMO_COMM_RENDEZVOUS_STORE_BOARD_H_
