#include "comm/bridge/bridge_direction.h"

#include <algorithm>
#include <map>

namespace mimo {
namespace {

using End = BridgeDirection::End;
using Sum = BridgeDirection::Sum;

BridgePlace PlaceOn(const BridgeSide& side, int rank) {
  const auto it = std::find(side.ranks.begin(), side.ranks.end(), rank);
  if (it == side.ranks.end()) return BridgePlace();
  const int i = static_cast<int>(it - side.ranks.begin());
  return {.lane = i / (side.cp * side.tp),
          .tp = i % side.tp,
          .cp = i / side.tp % side.cp};
}

// A whole piece.
BridgeRange RangeOf(const BridgePlan& plan, int index, const BridgeLane& lane) {
  const BridgePiece& piece = plan.pieces[index];
  return {.packed = piece.first_row * plan.outer * plan.inner - lane.begin,
          .strided = (piece.first_row - lane.first_row) * plan.inner,
          .width = piece.rows * plan.inner,
          .begin = 0,
          .end = plan.outer * piece.rows * plan.inner};
}

// The part of a lane's pieces that is in [begin, end) of the packed lane.
std::vector<BridgeRange> RangesIn(const BridgePlan& plan,
                                  const BridgeLane& lane, int64_t begin,
                                  int64_t end) {
  std::vector<BridgeRange> ranges;
  for (int piece : lane.pieces) {
    BridgeRange range = RangeOf(plan, piece, lane);
    range.begin = std::max(range.begin, begin - range.packed);
    range.end = std::min(range.end, end - range.packed);
    if (range.begin < range.end) ranges.push_back(range);
  }
  return ranges;
}

// Adds a range of a piece; what several ranks are sent of it is packed once.
void AddToHull(std::vector<BridgeRange>& ranges, const BridgeRange& range) {
  for (BridgeRange& hull : ranges) {
    if (hull.packed != range.packed) continue;
    hull.begin = std::min(hull.begin, range.begin);
    hull.end = std::max(hull.end, range.end);
    return;
  }
  ranges.push_back(range);
}

End EndOf(const BridgePlan& plan, const BridgePlace& at,
          const std::vector<BridgeLane>& lanes, int cp) {
  End end;
  if (at.lane < 0 || lanes[at.lane].count == 0) return end;
  const BridgeLane& lane = lanes[at.lane];
  end.on = true;
  end.count = lane.count;
  end.pitch = lane.rows * plan.inner;
  end.share = lane.share;
  end.block = lane.share * cp * at.tp;
  end.packed = plan.outer == 1 || lane.pieces.size() == 1;
  return end;
}

}  // namespace

BridgePlace PlaceOnSource(const BridgeSide& source, int rank) {
  BridgePlace place = PlaceOn(source, rank);
  if (place.lane >= 0) place.lane = place.lane * source.cp + place.cp;
  return place;
}

BridgePlace PlaceOnDestination(const BridgeSide& destination, int rank) {
  return PlaceOn(destination, rank);
}

BridgeDirection DirectionOf(const BridgePlan& plan, bool backward, DType dtype,
                            int rank, const BridgePlace& source,
                            const BridgePlace& destination,
                            absl::Span<const int> members) {
  BridgeDirection direction;
  direction.backward = backward;
  direction.dtype = dtype;
  const int cp = plan.destination_cp;
  End& from = direction.from;
  End& to = direction.to;
  from = EndOf(plan, source, plan.source, 1);
  to = EndOf(plan, destination, plan.destination, cp);
  const BridgeLane* from_lane = from.on ? &plan.source[source.lane] : nullptr;
  const BridgeLane* to_lane =
      to.on ? &plan.destination[destination.lane] : nullptr;
  if (backward) {
    std::swap(from, to);
    std::swap(from_lane, to_lane);
  }
  direction.direct = to.on && to_lane->direct;
  const int64_t size = SizeOf(dtype);

  std::map<int, int> peers;
  for (size_t i = 0; i < members.size(); ++i) {
    peers[members[i]] = static_cast<int>(i);
  }
  std::vector<BridgeRange> sent, received;
  for (const BridgeMessage& m : backward ? plan.backward : plan.forward) {
    const auto range_in = [&](const BridgeLane& lane) {
      BridgeRange range = RangeOf(plan, m.piece, lane);
      range.begin = m.begin - lane.begin - range.packed;
      range.end = range.begin + m.count;
      return range;
    };
    if (m.from == rank && m.to == rank) {
      direction.copies.push_back({range_in(*from_lane), range_in(*to_lane)});
    } else if (m.from == rank) {
      from.slices.push_back(
          {peers.at(m.to), m.begin - from_lane->begin, m.count});
      AddToHull(sent, range_in(*from_lane));
    } else if (m.to == rank) {
      to.slices.push_back(
          {peers.at(m.from), m.begin - to_lane->begin, m.count});
      received.push_back(range_in(*to_lane));
    }
  }

  if (from.on && backward && cp > 1 && plan.routing == BridgeRouting::kDirect) {
    direction.sum = Sum::kTensor;
    direction.sum_bytes = from.count * size;
  } else if (from.on && backward && cp > 1 && from.block < from.count) {
    const int64_t end = from.block + from.share * cp;
    const bool lies = from.packed && end <= from.count;
    direction.sum = lies ? Sum::kBlock : Sum::kPackedBlock;
    direction.sum_bytes = (lies ? from.share : end - from.block) * size;
    if (!lies) from.ranges = RangesIn(plan, *from_lane, from.block, end);
  }
  if (!from.packed && !sent.empty() &&
      (direction.sum == Sum::kNone || direction.sum == Sum::kTensor)) {
    direction.packs = true;
    int64_t begin = from.count, end = 0;
    for (const BridgeRange& range : sent) {
      begin = std::min(begin, range.packed + range.begin);
      end = std::max(end, range.packed + range.end);
    }
    direction.pack_begin = begin;
    direction.pack_bytes = (end - begin) * size;
    from.ranges = std::move(sent);
  }
  if (to.on) {
    const bool gathers =
        plan.routing == BridgeRouting::kShared && !direction.direct;
    const int64_t room =
        gathers ? to.share * static_cast<int64_t>(to_lane->ranks.size())
                : to.count;
    // A leader's peers receive the tensor itself, by broadcast; what comes only
    // from this rank is copied to its place.
    const bool receives = gathers || !to.slices.empty();
    direction.staged = receives && (!to.packed || room != to.count);
    if (direction.staged) {
      direction.recv_bytes = room * size;
      to.ranges = direction.direct ? std::move(received)
                                   : RangesIn(plan, *to_lane, 0, to.count);
    }
  }
  return direction;
}

}  // namespace mimo
