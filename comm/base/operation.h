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
  int64_t sequence = -1;  // counts this rank's calls on the communicator from 0
  Kind kind = kBarrier;
  DType dtype = DType::kUInt8;
  ReduceOp op = ReduceOp::kSum;
  int64_t count = 0;  // elements of one rank; of an Exchange its transfers
  int root = -1;      // of a broadcast, or the first peer of an exchange
  absl::Time start;
  bool done = false;

  // "all_reduce(sum, 1024 bfloat16), sequence 17"
  std::string ToString() const;
};

}  // namespace mimo

#endif  // MIMO_COMM_BASE_OPERATION_H_
