// The ranks of a command: this process alone, threads of it, or its part of a
// job of processes.
#ifndef MIMO_CLI_RANKS_H_
#define MIMO_CLI_RANKS_H_

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "comm/base/communicator.h"
#include "comm/rendezvous/job.h"
#include "kernels/base/stream.h"

namespace mimo {

// What a process does by itself.
using SetUp = absl::FunctionRef<absl::Status()>;
// What a rank built that uses its communicators.
using Kept = std::shared_ptr<void>;
// What every rank does; null: it is the only one. Where a process fails, `kept`
// lives until the others know: its end waits for the GPU, which may wait for
// them.
using RankBody =
    absl::FunctionRef<absl::Status(Communicator* world, Kept& kept)>;

// Read after `read`.
struct RankOptions {
  // A collective, or another wait for a rank, that lasts longer fails all.
  absl::Duration timeout = absl::Minutes(10);
  // What processes meet over: gloo, or NCCL, then each on a GPU of its own.
  Device device = Device::kCpu;
};

// Runs `read`, which finds the options, `prepare`, then `body` on each of
// `ranks`: on `threads` of this process, or, where `job` has more than one
// rank, on this process's. Of a job rank 0 prepares first, so what it makes the
// others find. The error is that of the rank that failed first; of the job's
// other processes its message is empty. Where that rank cannot tell, being no
// more or not there, each of the others logs which it is. A rank that hangs
// when another has failed ends its process, of threads with that one's line.
absl::Status RunOnRanks(const Job& job, int threads, const RankOptions& options,
                        SetUp read, SetUp prepare, RankBody body);

}  // namespace mimo

#endif  // MIMO_CLI_RANKS_H_
