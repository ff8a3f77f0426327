// What all ranks must agree on or know, and is small: counts, losses, failures.
#ifndef MIMO_MIMO_PARALLEL_SUM_OVER_RANKS_H_
#define MIMO_MIMO_PARALLEL_SUM_OVER_RANKS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "comm/base/communicator.h"
#include "mimo/tensor/allocator.h"

namespace mimo {

// Replaces `values` by their sums over the ranks of `group`, on all of them and
// in rank order; waits for them. Null: this rank alone. The error is the
// group's failure.
absl::Status SumOverRanks(Communicator* group, Allocator& allocator,
                          absl::Span<double> values);

// The `text` of each rank, on all of them; likewise.
absl::StatusOr<std::vector<std::string>> GatherTexts(Communicator* group,
                                                     Allocator& allocator,
                                                     const std::string& text);

// On all ranks the error of the first that has one; likewise.
absl::Status AgreeOverRanks(Communicator* group, Allocator& allocator,
                            absl::Status status);

}  // namespace mimo

#endif  // MIMO_MIMO_PARALLEL_SUM_OVER_RANKS_H_
