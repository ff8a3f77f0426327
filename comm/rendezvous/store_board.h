// The failure board of a world of processes, kept in its store.
#ifndef MIMO_COMM_RENDEZVOUS_STORE_BOARD_H_
#define MIMO_COMM_RENDEZVOUS_STORE_BOARD_H_

#include <memory>
#include <string>

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

// Raises `reason` and waits for the one that counts, the first. Error: the
// server does not answer.
absl::StatusOr<std::string> RaiseFirst(Store& store, const std::string& reason,
                                       absl::Duration timeout);

}  // namespace mimo

#endif  // MIMO_COMM_RENDEZVOUS_STORE_BOARD_H_
