// How long the operations of a communicator take, and the bandwidth that is.
// docs/perf/collectives.md says what each column means and why.
#ifndef MIMO_BENCH_COLLECTIVES_MEASURE_H_
#define MIMO_BENCH_COLLECTIVES_MEASURE_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "comm/base/communicator.h"
#include "kernels/base/dtype.h"
#include "kernels/base/stream.h"

namespace mimo {

enum class Collective {
  kAllReduce,
  kAllGather,
  kReduceScatter,
  kBroadcast,
  kAllToAll,
  kSendRecv,  // of each pair of ranks (0, 1), (2, 3) .. the first to the second
  kExchange,  // every rank to the next and from the one before, in one batch
  kBarrier
};
inline constexpr Collective kCollectives[] = {
    Collective::kAllReduce, Collective::kAllGather, Collective::kReduceScatter,
    Collective::kBroadcast, Collective::kAllToAll,  Collective::kSendRecv,
    Collective::kExchange,  Collective::kBarrier};
absl::string_view Name(Collective what);

// What a call's `bytes` are to the busiest link of a rank: bus bandwidth is
// BusFactor * bytes / time.
double BusFactor(Collective what, int ranks);
// The `count` of a call on buffers of `bytes`: the elements of a rank.
int64_t CountOf(Collective what, int64_t bytes, DType dtype, int ranks);

// One call by this rank, enqueued on `stream`. Reductions sum.
using RunCollective =
    std::function<void(Collective what, const void* send, void* recv,
                       int64_t count, DType dtype, Stream stream)>;
RunCollective OperationsOf(Communicator& group);

// A way to make the calls: the communicator's, a plain loop of its library.
struct Contender {
  std::string name;
  RunCollective run;
};

struct Timing {
  double us = 0;          // from one call to the next, of the slowest rank
  double enqueue_us = 0;  // until the call returned to rank 0's host
};

// Contenders in turns, round by round, so that all see the same machine;
// medians of the rounds. `seconds` is about what all take together. Every rank
// of `group` calls it; the status is the group's health.
absl::StatusOr<std::vector<Timing>> Measure(
    Communicator& group, Stream stream, Collective what, int64_t bytes,
    DType dtype, double seconds, absl::Span<const Contender> contenders);

// A Markdown table of every operation and size, on rank 0's standard output.
// Of two contenders the last columns say how much faster the first is, and what
// its call costs the host more.
struct TableOptions {
  DType dtype = DType::kFloat32;
  std::vector<int64_t> bytes;  // of the larger buffer of a call
  double seconds = 0.2;        // a line
};
absl::Status PrintTable(Communicator& group, Stream stream,
                        const TableOptions& options,
                        absl::Span<const Contender> contenders);

}  // namespace mimo

#endif  // MIMO_BENCH_COLLECTIVES_MEASURE_H_
