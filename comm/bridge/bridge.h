// Bridge: carries out a BridgePlan. Activations go from the last pipeline stage
// of one module to the first of another, gradients back.
//
// A call packs (only payloads whose batch axis is not the outermost), makes one
// Exchange, in which the rank sends itself what stays there, and lets the
// receiving module's own groups finish: shares are gathered, sums over cp taken
// before sending. It enqueues on `stream`, the same in all calls of a bridge,
// and returns. Plans are kept by payload, staging memory as large as needed so
// far: a call with a payload seen lately allocates nothing and waits for
// nothing. With no rows in a lane its groups do nothing; with none at all a
// call does nothing.
#ifndef MIMO_COMM_BRIDGE_BRIDGE_H_
#define MIMO_COMM_BRIDGE_BRIDGE_H_

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/base/communicator.h"
#include "comm/bridge/bridge_direction.h"
#include "comm/bridge/bridge_plan.h"
#include "kernels/base/stream.h"

namespace mimo {

// The communicators of a bridge, which outlive it.
struct BridgeGroups {
  Communicator* bridge;  // of BridgeRanks(source, destination)
  // The modules' own groups of this rank, in the order of the tables; null
  // where this rank is not on that side or the group has one rank.
  Communicator* source_tp = nullptr;
  Communicator* destination_tp = nullptr;
  Communicator* destination_cp = nullptr;
};

class Bridge {
 public:
  // One direction of one micro-batch on this rank: what it sends of its lane
  // and where its lane is received, each [outer, rows, inner], null on a rank
  // that is not on that side. Every rank passes the same payload.
  struct Pass {
    const BridgePayload& payload;
    const void* send;
    void* recv;
  };

  // Errors: sides that the routing cannot join, groups of other ranks than the
  // tables say.
  static absl::StatusOr<std::unique_ptr<Bridge>> Create(
      const BridgeSide& source, const BridgeSide& destination,
      BridgeRouting routing, const BridgeGroups& groups);
  ~Bridge();

  const BridgeSide& source() const { return source_; }
  const BridgeSide& destination() const { return destination_; }
  // This rank's; -1 if it is not on that side.
  int source_lane() const { return source_place_.lane; }
  int destination_lane() const { return destination_place_.lane; }

  // Called by all ranks of the bridge, which agree on the payload and so on an
  // error of it: counts that do not fit the sides or each other. Another error:
  // no memory.
  //
  // Forward: activations, source to destination.
  absl::Status Forward(const Pass& forward, Stream stream);
  // Backward: their gradients, destination to source. Those of the
  // destination's cp ranks are summed; those of its tp ranks are alike.
  absl::Status Backward(const Pass& backward, Stream stream);
  // Both, of different micro-batches, in one Exchange, so that neighbours in a
  // pipeline's steady state do not wait for each other.
  absl::Status ForwardAndBackward(const Pass& forward, const Pass& backward,
                                  Stream stream);

  // `payload` with the row counts of all lanes, when each rank knows those of
  // its own lanes (of a side that it is not on, any number). For row counts
  // that change: a collective call, and it waits. Errors: ranks of one lane
  // say different counts, or the bridge has failed.
  absl::StatusOr<BridgePayload> GatherRows(BridgePayload payload,
                                           int64_t source_rows,
                                           int64_t destination_rows,
                                           Stream stream);

 private:
  struct Prepared;
  struct Moving;
  enum Stage { kSum, kPack, kRecv, kRows, kStages };
  struct Memory {
    void* data = nullptr;
    int64_t bytes = 0;
    Device device = Device::kCpu;
  };

  Bridge(const BridgeSide& source, const BridgeSide& destination,
         BridgeRouting routing, const BridgeGroups& groups);
  absl::StatusOr<std::shared_ptr<const Prepared>> Prepare(
      const BridgePayload& payload, Stream stream);
  absl::Status Reserve(Memory& memory, int64_t bytes, Stream stream);
  absl::Status Run(const Pass* forward, const Pass* backward, Stream stream);
  Moving Begin(const BridgeDirection& direction, const Pass& pass,
               Stream stream);
  void Finish(const BridgeDirection& direction, const Moving& moving,
              Stream stream);

  const BridgeSide source_, destination_;
  const BridgeRouting routing_;
  const BridgeGroups groups_;
  const int rank_;  // in the world
  const BridgePlace source_place_, destination_place_;

  static constexpr int kKept = 8;
  std::array<std::shared_ptr<const Prepared>, kKept> prepared_;
  int next_prepared_ = 0;
  Memory memory_[2][kStages];  // [forward, backward]
  std::vector<Transfer> transfers_;
};

}  // namespace mimo

#endif  // MIMO_COMM_BRIDGE_BRIDGE_H_
