// BridgePlan: which elements each rank sends to whom when a tensor goes from
// one module to another of different parallelism, and its gradient back. A pure
// function of rank tables and row counts: no communicator, no process.
//
// Payload. A tensor [outer, n, inner] whose middle axis is the batch axis:
// [N, H] is outer 1, inner H; [S, B, H] is outer S, inner H; [B, S, H] is
// outer 1, inner S * H. All rows of the global micro-batch, in data order, lie
// on one line [0, N). A lane is an interval of it that some ranks hold alike:
//   source       a lane for each (dp, cp), in that order; its tp ranks hold
//                copies (a further data axis, as GTP, counts as dp)
//   destination  a lane for each dp; all its tp x cp ranks receive the whole
//                lane (a language model slices for CP after aligning tokens).
//                So the gradients of the tp ranks are copies, those of the cp
//                ranks parts of a sum.
// Lanes of either side may hold any number of rows, 0 too. Two lanes meet in a
// piece, and the line of elements is the sequence of pieces, each packed
// [outer, rows, inner]: a lane is an interval of it as well. With outer 1 or
// one piece in a lane, a packed lane is the tensor as it lies in memory.
//
// Routing.
//   kShared  A lane's interval is cut in equal shares, one for each of its
//            ranks: each source rank sends its share, each destination rank
//            receives its share, and messages are the overlaps of the two cuts
//            of the line. Each byte crosses once, and all ranks carry alike.
//            The destination then all-gathers the shares on its own groups:
//            over cp within a tp rank's block, then over tp. Backward is the
//            mirror: reduce-scatter over cp, send one's own share, and the
//            source all-gathers over tp. A lane whose ranks hold already all
//            that it gets receives as in kDirect, where that costs no holder
//            more than the lane's bytes: nothing else need cross.
//   kDirect  Both modules on the same ranks. A rank copies what it needs and
//            holds, and receives just what it lacks, from the holders in equal
//            parts. Backward likewise, after an all-reduce over cp.
//   kLeader  Megatron's: the last tp rank of a source lane sends, the first of
//            a destination lane receives and broadcasts; backward the mirror.
//            For comparison; cp must be 1, and one dp divide the other.
// Source of kLeader: Megatron-Core's bridge_communicator.py.
//
// Offsets and counts are in elements.
#ifndef MIMO_COMM_BRIDGE_BRIDGE_PLAN_H_
#define MIMO_COMM_BRIDGE_BRIDGE_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/base/dtype.h"

namespace mimo {

// The ranks of a module that a bridge joins: the last pipeline stage of the
// source, the first of the destination.
struct BridgeSide {
  int dp = 1, cp = 1, tp = 1;
  std::vector<int> ranks;  // [dp, cp, tp] world ranks

  bool operator==(const BridgeSide&) const = default;
};

enum class BridgeRouting : uint8_t { kShared, kDirect, kLeader };

// The ranks of either side, ascending.
std::vector<int> BridgeRanks(const BridgeSide& source,
                             const BridgeSide& destination);
// kDirect if both sides are the same ranks, else kShared.
BridgeRouting DefaultBridgeRouting(const BridgeSide& source,
                                   const BridgeSide& destination);

struct BridgePayload {
  int64_t outer = 1, inner = 1;
  std::vector<int64_t> source_rows;       // [dp * cp]
  std::vector<int64_t> destination_rows;  // [dp]
  DType dtype = DType::kFloat32;

  bool operator==(const BridgePayload&) const = default;
};

// Rows of each lane when the data's samples, with these row counts, are dealt
// to the lanes in order, each lane as many samples. Error: they cannot be.
absl::StatusOr<std::vector<int64_t>> RowsOfLanes(
    absl::Span<const int64_t> sample_rows, int lanes);
// `rows` cut near-equally, the first lanes one longer.
std::vector<int64_t> NearEqualRows(int64_t rows, int lanes);

struct BridgeLane {
  int64_t first_row, rows;  // on the line of rows
  int64_t begin, count;     // on the line of elements
  // kShared: share k is elements [k * share, (k + 1) * share) of the lane, and
  // ends where the lane ends: a buffer to gather into has room for all in full.
  int64_t share;
  bool direct;             // it receives as in kDirect
  std::vector<int> ranks;  // by share: tp for a source, tp * cp, cp fast, else
  std::vector<int> pieces;
};

// What two lanes have in common, never empty.
struct BridgePiece {
  int source, destination;  // lanes
  int64_t first_row, rows;
};

// Elements [begin, begin + count) of the line, of one piece.
struct BridgeMessage {
  int from, to;  // world ranks; equal for a copy
  int piece;
  int64_t begin, count;

  bool operator==(const BridgeMessage&) const = default;
};

struct BridgePlan {
  BridgeRouting routing;
  int64_t outer, inner;
  int destination_cp;
  std::vector<BridgeLane> source, destination;
  std::vector<BridgePiece> pieces;  // by first row
  // In an order that all ranks share: between two ranks, a batch's sends meet
  // its receives in it.
  std::vector<BridgeMessage> forward, backward;

  // A line for each rank and direction: which rows it has, what it sends and
  // receives, what its groups do after or before.
  std::string ToString() const;
};

// Errors: a table of the wrong size or with a rank twice, sides that the
// routing cannot join, counts that are negative, too few, or differ in total.
absl::StatusOr<BridgePlan> PlanBridge(const BridgeSide& source,
                                      const BridgeSide& destination,
                                      const BridgePayload& payload,
                                      BridgeRouting routing);
// The checks of the sides alone.
absl::Status CheckBridgeSides(const BridgeSide& source,
                              const BridgeSide& destination,
                              BridgeRouting routing);

}  // namespace mimo

#endif  // MIMO_COMM_BRIDGE_BRIDGE_PLAN_H_
