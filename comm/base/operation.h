// Operation: one call on a communicator, as its record and its failure
// messages name it.
#ifndef MIMO_COMM_BASE_OPERATION_H_
#define MIMO_COMM_BASE_OPERATION_H_

#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "kernels/base/dtype.h"

namespace mimo {

enum class ReduceOp : uint8_t { kSum, kMax, kMin };

struct Operation {
  enum Kind : uint8_t {
    kAllReduce,
    kAllGather,
    kReduceScatter,
    kBroadcast,
    kAllToAll,
    kExchange,
    kBarrier,
    kSplit
  };
  // Its place, from 0, among the group's collectives (the same on all ranks),
  // or among this rank's exchanges.
  int64_t sequence = 0;
  Kind kind = kBarrier;
  DType dtype = DType::kUInt8;
  ReduceOp op = ReduceOp::kSum;
  // Elements of one rank (of an all-to-all: of one part, kUneven if they
  // differ); transfers of an exchange; groups of a split.
  int64_t count = 0;
  int root = -1;  // of a broadcast; first peer of an exchange
  absl::Time start;
  bool done = false;

  static constexpr int64_t kUneven = -1;

  // Whether ranks of one group may make these two calls together: all but the
  // sequence number, the start and `done` are equal.
  bool Matches(const Operation& other) const;

  // "all_reduce(sum, 1024 bfloat16), sequence 17"
  std::string ToString() const;
};

}  // namespace mimo

#endif  // MIMO_COMM_BASE_OPERATION_H_
