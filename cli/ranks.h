// The ranks of a command: this process alone, threads of it, or its part of a
// job of processes.
#ifndef MIMO_CLI_RANKS_H_
#define MIMO_CLI_RANKS_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "comm/base/communicator.h"
#include "comm/rendezvous/job.h"
#include "kernels/base/stream.h"

namespace mimo {

// What a process does before it meets the others: reads what is its own.
using SetUp = absl::FunctionRef<absl::Status()>;
// What every rank does; null: it is the only one.
using RankBody = absl::FunctionRef<absl::Status(Communicator* world)>;

// Read after `set_up`.
struct RankOptions {
  // A collective that lasts longer fails all.
  absl::Duration timeout = absl::InfiniteDuration();
  // What processes meet over: gloo, or NCCL, then each on a GPU of its own.
  Device device = Device::kCpu;
};

// Runs `set_up`, then `body` on each of `ranks`: on `threads` of this process,
// or, where `job` has more than one rank, on this process's.
// Of a job rank 0 sets up first, so what it prepares the others find. The error
// is that of the rank that failed first; of the job's other processes its
// message is empty.
absl::Status RunOnRanks(const Job& job, int threads, const RankOptions& options,
                        SetUp set_up, RankBody body);

}  // namespace mimo

#endif  // MIMO_CLI_RANKS_H_
