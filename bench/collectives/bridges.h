// How long bridges take, beside one pair of ranks that sends as many bytes.
// docs/perf/collectives.md says what the columns mean.
#ifndef MIMO_BENCH_COLLECTIVES_BRIDGES_H_
#define MIMO_BENCH_COLLECTIVES_BRIDGES_H_

#include "absl/status/status.h"
#include "bench/collectives/measure.h"
#include "comm/base/communicator.h"
#include "kernels/base/stream.h"

namespace mimo {

// Called by every rank of a world of an even number of ranks. A Markdown table
// on rank 0's standard output: modules on the two halves of the ranks and on
// all of them, with tp and with dp, forward and backward, by bridge's own
// routing and by kLeader. `bytes` are those of the whole payload.
absl::Status PrintBridgeTable(Communicator& world, Stream stream,
                              const TableOptions& options);

}  // namespace mimo

#endif  // MIMO_BENCH_COLLECTIVES_BRIDGES_H_
