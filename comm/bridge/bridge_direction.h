// BridgeDirection: what one rank does of a BridgePlan in one direction, with
// the places of its data in memory. Pure, as the plan.
#ifndef MIMO_COMM_BRIDGE_BRIDGE_DIRECTION_H_
#define MIMO_COMM_BRIDGE_BRIDGE_DIRECTION_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "comm/bridge/bridge_plan.h"
#include "kernels/base/dtype.h"

namespace mimo {

// Where a rank stands on a side: lane -1 if it does not.
struct BridgePlace {
  int lane = -1, tp = 0, cp = 0;
};
BridgePlace PlaceOnSource(const BridgeSide& source, int rank);
BridgePlace PlaceOnDestination(const BridgeSide& destination, int rank);

// Elements [begin, end) of a piece, a matrix [outer, width], as a lane holds
// it: packed from element `packed` of the lane on, or with the lane's other
// pieces beside it from element `strided` of the tensor on.
struct BridgeRange {
  int64_t packed, strided, width;
  int64_t begin, end;
};

// A message as one of its ranks sees it.
struct BridgeSlice {
  int peer;       // in the bridge's communicator
  int64_t begin;  // of the packed lane
  int64_t count;
};

struct BridgeDirection {
  struct End {
    bool on = false;               // this rank is on that side, with rows
    int64_t count = 0, pitch = 0;  // of its lane [outer, pitch]
    // Its share is at block + cp * share, `block` its tp rank's shares.
    int64_t share = 0, block = 0;
    bool packed = true;               // the tensor is the packed lane
    std::vector<BridgeSlice> slices;  // to or from other ranks
    std::vector<BridgeRange> ranges;  // to pack or unpack
  };
  End from, to;
  std::vector<std::pair<BridgeRange, BridgeRange>> copies;  // (from, to)
  bool backward;
  DType dtype;

  // Before sending, gradients are summed over the destination's cp ranks.
  // kTensor: all-reduced as the tensor lies. kBlock: this rank's tp block is
  // reduce-scattered, from the tensor; kPackedBlock: from memory into which it
  // is packed first, as it ends behind the tensor or is not packed there.
  enum class Sum : uint8_t { kNone, kTensor, kBlock, kPackedBlock };
  Sum sum = Sum::kNone;
  // What is sent is packed first, from this element of the lane on.
  bool packs = false;
  int64_t pack_begin = 0;
  bool direct = false;  // the receiving lane
  bool staged = false;  // received in staging memory, then unpacked

  int64_t sum_bytes = 0, pack_bytes = 0, recv_bytes = 0;  // of staging memory
};

// For the rank `rank`; members: world ranks of the bridge's communicator.
BridgeDirection DirectionOf(const BridgePlan& plan, bool backward, DType dtype,
                            int rank, const BridgePlace& source,
                            const BridgePlace& destination,
                            absl::Span<const int> members);

}  // namespace mimo

#endif  // MIMO_COMM_BRIDGE_BRIDGE_DIRECTION_H_
