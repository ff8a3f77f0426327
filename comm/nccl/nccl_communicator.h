// NCCL communicators: one process a GPU, work on CUDA streams.
//
// Every operation enqueues on the stream and returns, but Barrier and Split,
// and an event after it tells the watchdog when it is done. A call may be
// captured in a CUDA graph (make one like it before, which connects the ranks);
// of a captured one the watchdog knows nothing, nor of its replays.
//
// Two communicators of NCCL for the world. A non-blocking one is set up and
// split, so that a rank that never comes ends in a timeout. It never carries
// data: an operation on a non-blocking communicator starts a thread each time
// (NCCL 2.28, group.cc). All that carry data are split off as blocking ones,
// whose operations cost the host a kernel launch.
//
// Sums of bfloat16 and float16 are rounded after each of the n - 1 additions
// of a ring. Source: NCCL 2.28's user guide, "Creating a Communicator" and
// "Fault Tolerance".
#ifndef MIMO_COMM_NCCL_NCCL_COMMUNICATOR_H_
#define MIMO_COMM_NCCL_NCCL_COMMUNICATOR_H_

#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "comm/base/communicator.h"
#include "comm/rendezvous/job.h"
#include "comm/rendezvous/store.h"

namespace mimo {

struct NcclOptions {
  // Of an operation, and of all ranks' coming together.
  absl::Duration timeout = absl::Seconds(60);
};

// The world's communicator on GPU `job.local_rank`, which becomes this thread's
// device. The store stays until the last communicator is gone. Errors: no such
// GPU; NCCL's; kDeadlineExceeded when not all ranks came.
absl::StatusOr<std::unique_ptr<Communicator>> ConnectNccl(
    const Job& job, Store& store, const NcclOptions& options = {});

}  // namespace mimo

#endif  // MIMO_COMM_NCCL_NCCL_COMMUNICATOR_H_
