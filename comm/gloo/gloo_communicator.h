// gloo communicators: ranks that are processes, over TCP. Host memory only.
//
// The same input gives the same bits: every rank reduces one slice in rank
// order (of bfloat16 and float16 in float32, rounded once). Each two ranks have
// one connection, and every message a tag made of the call that it is of: its
// place among the group's collectives (among the transfers between the two),
// operation, dtype, counts, root. So different calls never meet: they wait, and
// the watchdog names the difference. An all-to-all whose counts the two ranks
// see differently, or a transfer, waits in the same way.
//
// The ranks' connections are neither authenticated nor encrypted. SIGPIPE is
// ignored in this process from the first connection on, as gloo asks for.
// No call allocates here but the first reduction; gloo itself allocates some
// queue entries a message, and locks.
//
// Source: gloo's transport/tcp and docs/transport.md.
#ifndef MIMO_COMM_GLOO_GLOO_COMMUNICATOR_H_
#define MIMO_COMM_GLOO_GLOO_COMMUNICATOR_H_

#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "comm/base/communicator.h"
#include "comm/rendezvous/job.h"
#include "comm/rendezvous/store.h"

namespace mimo {

struct GlooOptions {
  // Of an operation, and of all ranks' coming together.
  absl::Duration timeout = absl::Seconds(60);
};

// The world's communicator, with a watchdog. It listens on the address from
// which this machine reaches `job.host`. The store stays until the last
// communicator is gone. Errors: no way to `job.host`; gloo's; kDeadlineExceeded
// when not all ranks came.
absl::StatusOr<std::unique_ptr<Communicator>> ConnectGloo(
    const Job& job, Store& store, const GlooOptions& options = {});

}  // namespace mimo

#endif  // MIMO_COMM_GLOO_GLOO_COMMUNICATOR_H_
