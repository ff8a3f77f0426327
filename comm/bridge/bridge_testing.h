// Layouts and groups for the bridge's tests and benches.
#ifndef MIMO_COMM_BRIDGE_BRIDGE_TESTING_H_
#define MIMO_COMM_BRIDGE_BRIDGE_TESTING_H_

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/base/communicator.h"
#include "comm/bridge/bridge.h"
#include "comm/bridge/bridge_plan.h"
#include "kernels/base/status_macros.h"

namespace mimo {

// A stage of consecutive ranks: tp, cp, dp from fast to slow.
inline BridgeSide Stage(int offset, int dp, int cp, int tp) {
  BridgeSide side{dp, cp, tp, std::vector<int>(dp * cp * tp)};
  std::iota(side.ranks.begin(), side.ranks.end(), offset);
  return side;
}

struct BridgeCase {
  BridgeSide source, destination;
  BridgePayload payload;
  BridgeRouting routing;
};

// Up to 8 ranks a side, in random order, disjoint, overlapping or the same;
// rows dealt at random, lanes without any among them.
inline BridgeCase RandomBridgeCase(std::mt19937& random) {
  const auto below = [&](int n) { return static_cast<int>(random() % n); };
  const auto side = [&](int size) {
    // A random factorisation of size.
    const auto divisor = [&](int n) {
      int d = 1 + below(n);
      while (n % d != 0) --d;
      return d;
    };
    const int dp = divisor(size), cp = divisor(size / dp);
    return Stage(0, dp, cp, size / dp / cp);
  };
  const auto rows = [&](int64_t total, int lanes) {
    std::vector<int64_t> cuts = {0, total};
    for (int i = 1; i < lanes; ++i) {
      cuts.push_back(total * below(5) / 4 + below(2));
      cuts.back() = std::min(cuts.back(), total);
    }
    std::sort(cuts.begin(), cuts.end());
    std::vector<int64_t> result;
    for (int i = 0; i < lanes; ++i) result.push_back(cuts[i + 1] - cuts[i]);
    return result;
  };
  BridgeCase c;
  const int source_size = 1 + below(8);
  const bool same = below(4) == 0;
  c.source = side(source_size);
  c.destination = side(same ? source_size : 1 + below(8));
  // World ranks: the sides' places in two windows of one random order.
  std::vector<int> order(16);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  const int shift = same ? 0 : below(source_size + 1);
  for (int& rank : c.source.ranks) rank = order[rank];
  if (same) std::shuffle(order.begin(), order.begin() + source_size, random);
  for (int& rank : c.destination.ranks) rank = order[rank + shift];
  c.payload.outer = 1 + below(2) * below(4);
  c.payload.inner = 1 + below(9);
  const int64_t total = below(6) == 0 ? 0 : below(40);
  c.payload.source_rows = rows(total, c.source.dp * c.source.cp);
  c.payload.destination_rows = rows(total, c.destination.dp);
  c.payload.dtype = below(2) ? DType::kFloat32 : DType::kUInt8;
  c.routing = DefaultBridgeRouting(c.source, c.destination);
  if (c.source.cp == 1 && c.destination.cp == 1 && below(3) == 0 &&
      (c.source.dp % c.destination.dp == 0 ||
       c.destination.dp % c.source.dp == 0)) {
    c.routing = BridgeRouting::kLeader;
  }
  return c;
}

// A bridge with groups of its own, which a model would take from its grids.
struct BridgeWithGroups {
  std::unique_ptr<Communicator> all, source_tp, destination_tp, destination_cp;
  std::unique_ptr<Bridge> bridge;  // null on a rank of neither side
};

// Called by all ranks of `world`.
inline absl::StatusOr<BridgeWithGroups> MakeBridge(
    Communicator& world, const BridgeSide& source,
    const BridgeSide& destination, BridgeRouting routing) {
  // The groups of ranks that differ in one axis alone: `count` ranks, `step`
  // apart in the table.
  const auto groups = [](const BridgeSide& side, int count, int step) {
    std::vector<std::vector<int>> result;
    for (int i = 0; i < static_cast<int>(side.ranks.size()); ++i) {
      if (i / step % count != 0) continue;
      result.emplace_back();
      for (int k = 0; k < count; ++k) {
        result.back().push_back(side.ranks[i + k * step]);
      }
    }
    return result;
  };
  BridgeWithGroups made;
  const int stp = source.tp, tp = destination.tp, cp = destination.cp;
  MIMO_ASSIGN_OR_RETURN(
      made.all, world.Split("bridge", {BridgeRanks(source, destination)}));
  MIMO_ASSIGN_OR_RETURN(made.source_tp,
                        world.Split("source/tp", groups(source, stp, 1)));
  MIMO_ASSIGN_OR_RETURN(
      made.destination_tp,
      world.Split("destination/tp", groups(destination, tp, 1)));
  MIMO_ASSIGN_OR_RETURN(
      made.destination_cp,
      world.Split("destination/cp", groups(destination, cp, tp)));
  if (made.all == nullptr) return made;
  MIMO_ASSIGN_OR_RETURN(
      made.bridge,
      Bridge::Create(source, destination, routing,
                     {.bridge = made.all.get(),
                      .source_tp = made.source_tp.get(),
                      .destination_tp = made.destination_tp.get(),
                      .destination_cp = made.destination_cp.get()}));
  return made;
}

}  // namespace mimo

#endif  // MIMO_COMM_BRIDGE_BRIDGE_TESTING_H_
