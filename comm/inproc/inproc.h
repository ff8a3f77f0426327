// Ranks that are threads of this process: communicators over shared memory.
//
// They move real data, and the same input gives the same bits: sums are taken
// in rank order (of bfloat16 and float16 in float32, rounded once), by all
// ranks at once, each a slice. On every collective all members' calls are
// compared; the first difference fails all of them with both ranks and both
// calls named. A transfer waits for its other side, as NCCL's may, so what
// would deadlock there does here, and the watchdog tells. A call also fails
// when a rank that it needs has destroyed all its communicators. Host memory
// only.
#ifndef MIMO_COMM_INPROC_INPROC_H_
#define MIMO_COMM_INPROC_INPROC_H_

#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "comm/base/communicator.h"

namespace mimo {

// The communicators of ranks 0 to size-1 of a new group "world", each with a
// watchdog of this timeout. One thread uses each.
std::vector<std::unique_ptr<Communicator>> InprocWorld(
    int size, absl::Duration timeout = absl::Seconds(60));

// Runs `body` on every rank of such a world, each in a thread, and returns what
// each gave; a rank whose body gave OK gives its world's Health. A body's error
// fails the world, so that no other rank waits for it.
std::vector<absl::Status> RunRanks(
    int size, absl::FunctionRef<absl::Status(Communicator& world)> body,
    absl::Duration timeout = absl::Seconds(60));

}  // namespace mimo

#endif  // MIMO_COMM_INPROC_INPROC_H_
