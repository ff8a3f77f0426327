#include "comm/bridge/bridge_plan.h"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

// Shares are cut at multiples of this, so that transfers start aligned.
constexpr int64_t kShareBytes = 16;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The length of each of `parts` parts of `count` elements.
int64_t EqualPart(int64_t count, int64_t parts, DType dtype) {
  const int64_t unit = kShareBytes / SizeOf(dtype);
  return parts == 1 ? count : CeilDiv(CeilDiv(count, parts), unit) * unit;
}

absl::Status CheckSide(const std::string& name, const BridgeSide& side) {
  if (side.dp < 1 || side.cp < 1 || side.tp < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": dp ", side.dp, " x cp ", side.cp, " x tp ",
                     side.tp, ", wanted at least 1 of each"));
  }
  const int64_t wanted = int64_t{side.dp} * side.cp * side.tp;
  if (static_cast<int64_t>(side.ranks.size()) != wanted) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": ", side.ranks.size(), " ranks, wanted dp ",
                     side.dp, " x cp ", side.cp, " x tp ", side.tp));
  }
  std::vector<int> sorted = side.ranks;
  std::sort(sorted.begin(), sorted.end());
  if (sorted.front() < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": rank ", sorted.front(), ", wanted >= 0"));
  }
  if (auto twice = std::adjacent_find(sorted.begin(), sorted.end());
      twice != sorted.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": rank ", *twice, " stands twice, wanted once"));
  }
  return absl::OkStatus();
}

std::vector<int> SortedRanks(const BridgeSide& side) {
  std::vector<int> ranks = side.ranks;
  std::sort(ranks.begin(), ranks.end());
  return ranks;
}

// Checks the counts and returns their sum.
absl::StatusOr<int64_t> TotalRows(const std::string& name,
                                  const std::vector<int64_t>& rows, int lanes) {
  if (static_cast<int>(rows.size()) != lanes) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": ", rows.size(),
                     " row counts, wanted one for each of ", lanes, " lanes"));
  }
  for (size_t lane = 0; lane < rows.size(); ++lane) {
    if (rows[lane] < 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          name, ": ", rows[lane], " rows in lane ", lane, ", wanted >= 0"));
    }
  }
  return std::accumulate(rows.begin(), rows.end(), int64_t{0});
}

// The lanes of one side; ranks: of each lane, by share.
std::vector<BridgeLane> MakeLanes(const std::vector<int64_t>& rows,
                                  int64_t row_elements, bool shares,
                                  DType dtype,
                                  std::vector<std::vector<int>> ranks) {
  std::vector<BridgeLane> lanes(rows.size());
  int64_t first_row = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    BridgeLane& lane = lanes[i];
    lane.first_row = first_row;
    lane.rows = rows[i];
    lane.begin = first_row * row_elements;
    lane.count = rows[i] * row_elements;
    lane.ranks = std::move(ranks[i]);
    lane.share =
        shares ? EqualPart(lane.count, lane.ranks.size(), dtype) : lane.count;
    first_row += rows[i];
  }
  return lanes;
}

// An interval of the line of elements and the rank that carries it.
struct Part {
  int rank;
  int64_t begin, end;
};

// The line cut into what each rank carries. leader: the place, among a lane's
// ranks, of the one that carries all; -1: each carries its share.
std::vector<Part> CutLine(const std::vector<BridgeLane>& lanes, int leader) {
  std::vector<Part> parts;
  for (const BridgeLane& lane : lanes) {
    const int size = static_cast<int>(lane.ranks.size());
    for (int k = 0; k < size; ++k) {
      const int64_t begin =
          leader < 0 ? std::min(k * lane.share, lane.count) : 0;
      const int64_t end = leader < 0 ? std::min(begin + lane.share, lane.count)
                          : k == leader ? lane.count
                                        : 0;
      if (begin < end) {
        parts.push_back({lane.ranks[k], lane.begin + begin, lane.begin + end});
      }
    }
  }
  return parts;
}

// The overlaps of two cuts of one line.
std::vector<BridgeMessage> Overlaps(const BridgePlan& plan,
                                    const std::vector<Part>& source,
                                    const std::vector<Part>& destination) {
  const int64_t row_elements = plan.outer * plan.inner;
  std::vector<BridgeMessage> messages;
  size_t s = 0, d = 0, piece = 0;
  while (s < source.size() && d < destination.size()) {
    const int64_t begin = std::max(source[s].begin, destination[d].begin);
    const int64_t end = std::min(source[s].end, destination[d].end);
    while ((plan.pieces[piece].first_row + plan.pieces[piece].rows) *
               row_elements <=
           begin) {
      ++piece;
    }
    messages.push_back({source[s].rank, destination[d].rank,
                        static_cast<int>(piece), begin, end - begin});
    if (source[s].end == end) ++s;
    if (destination[d].end == end) ++d;
  }
  return messages;
}

// The lane that a piece comes from, and the one that it goes to.
std::pair<const BridgeLane&, const BridgeLane&> LanesOf(const BridgePlan& plan,
                                                        int piece,
                                                        bool backward) {
  const BridgeLane& source = plan.source[plan.pieces[piece].source];
  const BridgeLane& destination =
      plan.destination[plan.pieces[piece].destination];
  if (backward) return {destination, source};
  return {source, destination};
}

// The ranks of `to` that do not hold what `from` does.
std::vector<int> Lacking(const BridgeLane& from, const BridgeLane& to) {
  std::vector<int> ranks;
  absl::c_copy_if(to.ranks, std::back_inserter(ranks), [&](int rank) {
    return !absl::c_linear_search(from.ranks, rank);
  });
  return ranks;
}

// Of kShared: whether ranks of the lane hold all that it gets, and no holder
// would send more than the lane's rows, which each rank that lacks them
// receives anyhow. Parts of a sum over cp are not held.
bool IsDirect(const BridgePlan& plan, const BridgeLane& lane, bool backward) {
  if (backward && plan.destination_cp > 1) return false;
  return absl::c_all_of(lane.pieces, [&](int piece) {
    const BridgeLane& from = LanesOf(plan, piece, backward).first;
    const size_t lacking = Lacking(from, lane).size();
    return lacking < lane.ranks.size() &&
           plan.pieces[piece].rows * lacking <= lane.rows * from.ranks.size();
  });
}

// Every rank of a direct lane gets all its pieces. A piece's holders answer in
// equal parts for all that is asked of them.
std::vector<BridgeMessage> DirectMessages(const BridgePlan& plan, bool backward,
                                          DType dtype) {
  const int64_t row_elements = plan.outer * plan.inner;
  std::vector<BridgeMessage> messages;
  for (size_t p = 0; p < plan.pieces.size(); ++p) {
    const int piece = static_cast<int>(p);
    const auto [from, to] = LanesOf(plan, piece, backward);
    if (!to.direct) continue;
    const int64_t begin = plan.pieces[p].first_row * row_elements;
    const int64_t count = plan.pieces[p].rows * row_elements;
    for (int rank : to.ranks) {
      if (absl::c_linear_search(from.ranks, rank)) {
        messages.push_back({rank, rank, piece, begin, count});
      }
    }
    // The pieces that are asked for, one behind another, cut in equal parts.
    const std::vector<int> lacking = Lacking(from, to);
    const int64_t asked = count * static_cast<int64_t>(lacking.size());
    const int64_t part = EqualPart(asked, from.ranks.size(), dtype);
    for (int64_t x = 0; x < asked;) {
      const int64_t end =
          std::min({(x / part + 1) * part, (x / count + 1) * count, asked});
      messages.push_back({from.ranks[x / part], lacking[x / count], piece,
                          begin + x % count, end - x});
      x = end;
    }
  }
  return messages;
}

}  // namespace

std::vector<int> BridgeRanks(const BridgeSide& source,
                             const BridgeSide& destination) {
  std::vector<int> ranks;
  std::ranges::set_union(SortedRanks(source), SortedRanks(destination),
                         std::back_inserter(ranks));
  return ranks;
}

BridgeRouting DefaultBridgeRouting(const BridgeSide& source,
                                   const BridgeSide& destination) {
  return SortedRanks(source) == SortedRanks(destination)
             ? BridgeRouting::kDirect
             : BridgeRouting::kShared;
}

absl::StatusOr<std::vector<int64_t>> RowsOfLanes(
    absl::Span<const int64_t> sample_rows, int lanes) {
  const int samples = static_cast<int>(sample_rows.size());
  if (lanes < 1 || samples % lanes != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("row counts of ", samples, " samples, but ", lanes,
                     " lanes, wanted as many samples in each"));
  }
  std::vector<int64_t> rows(lanes);
  for (int i = 0; i < samples; ++i) {
    rows[i / (samples / lanes)] += sample_rows[i];
  }
  return rows;
}

std::vector<int64_t> NearEqualRows(int64_t rows, int lanes) {
  std::vector<int64_t> result(lanes);
  for (int i = 0; i < lanes; ++i) {
    result[i] = rows / lanes + (i < rows % lanes ? 1 : 0);
  }
  return result;
}

absl::Status CheckBridgeSides(const BridgeSide& source,
                              const BridgeSide& destination,
                              BridgeRouting routing) {
  MIMO_RETURN_IF_ERROR(CheckSide("bridge source", source));
  MIMO_RETURN_IF_ERROR(CheckSide("bridge destination", destination));
  if (routing == BridgeRouting::kDirect &&
      DefaultBridgeRouting(source, destination) != routing) {
    return absl::InvalidArgumentError(
        absl::StrCat("bridge: direct routing from ranks ",
                     absl::StrJoin(SortedRanks(source), ","), " to ",
                     absl::StrJoin(SortedRanks(destination), ","),
                     ", wanted the same ranks on both sides"));
  }
  if (routing == BridgeRouting::kLeader) {
    if (source.cp != 1 || destination.cp != 1) {
      return absl::InvalidArgumentError(absl::StrCat(
          "bridge: leader routing with cp ", source.cp, " at the source and ",
          destination.cp, " at the destination, wanted 1"));
    }
    if (source.dp % destination.dp != 0 && destination.dp % source.dp != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("bridge: leader routing from dp ", source.dp, " to dp ",
                       destination.dp, ", which must be evenly divisible"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<BridgePlan> PlanBridge(const BridgeSide& source,
                                      const BridgeSide& destination,
                                      const BridgePayload& payload,
                                      BridgeRouting routing) {
  MIMO_RETURN_IF_ERROR(CheckBridgeSides(source, destination, routing));
  if (payload.outer < 1 || payload.inner < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("bridge payload [", payload.outer, ", rows, ",
                     payload.inner, "], wanted sizes of at least 1"));
  }
  MIMO_ASSIGN_OR_RETURN(
      const int64_t source_rows,
      TotalRows("bridge source", payload.source_rows, source.dp * source.cp));
  MIMO_ASSIGN_OR_RETURN(const int64_t destination_rows,
                        TotalRows("bridge destination",
                                  payload.destination_rows, destination.dp));
  if (source_rows != destination_rows) {
    return absl::InvalidArgumentError(absl::StrCat(
        "bridge: the source lanes hold ", source_rows,
        " rows in all, the destination lanes want ", destination_rows));
  }

  std::vector<std::vector<int>> source_ranks(source.dp * source.cp);
  for (size_t i = 0; i < source.ranks.size(); ++i) {
    source_ranks[i / source.tp].push_back(source.ranks[i]);
  }
  std::vector<std::vector<int>> destination_ranks(destination.dp);
  for (int lane = 0; lane < destination.dp; ++lane) {
    for (int t = 0; t < destination.tp; ++t) {
      for (int c = 0; c < destination.cp; ++c) {
        const int i = (lane * destination.cp + c) * destination.tp + t;
        destination_ranks[lane].push_back(destination.ranks[i]);
      }
    }
  }

  BridgePlan plan;
  plan.routing = routing;
  plan.outer = payload.outer;
  plan.inner = payload.inner;
  plan.destination_cp = destination.cp;
  const int64_t row_elements = payload.outer * payload.inner;
  const bool shares = routing == BridgeRouting::kShared;
  plan.source = MakeLanes(payload.source_rows, row_elements, shares,
                          payload.dtype, std::move(source_ranks));
  plan.destination = MakeLanes(payload.destination_rows, row_elements, shares,
                               payload.dtype, std::move(destination_ranks));

  for (size_t s = 0, d = 0;
       s < plan.source.size() && d < plan.destination.size();) {
    BridgeLane& from = plan.source[s];
    BridgeLane& to = plan.destination[d];
    const int64_t from_end = from.first_row + from.rows;
    const int64_t to_end = to.first_row + to.rows;
    const int64_t begin = std::max(from.first_row, to.first_row);
    const int64_t end = std::min(from_end, to_end);
    if (begin < end) {
      from.pieces.push_back(static_cast<int>(plan.pieces.size()));
      to.pieces.push_back(static_cast<int>(plan.pieces.size()));
      plan.pieces.push_back(
          {static_cast<int>(s), static_cast<int>(d), begin, end - begin});
    }
    if (from_end == end) ++s;
    if (to_end == end) ++d;
  }

  const bool leads = routing == BridgeRouting::kLeader;
  plan.forward =
      Overlaps(plan, CutLine(plan.source, leads ? source.tp - 1 : -1),
               CutLine(plan.destination, leads ? 0 : -1));
  plan.backward = plan.forward;
  for (BridgeMessage& message : plan.backward) {
    std::swap(message.from, message.to);
  }
  for (const bool backward : {false, true}) {
    for (BridgeLane& lane : backward ? plan.source : plan.destination) {
      lane.direct = routing == BridgeRouting::kDirect ||
                    (shares && IsDirect(plan, lane, backward));
    }
    auto& messages = backward ? plan.backward : plan.forward;
    std::erase_if(messages, [&](const BridgeMessage& message) {
      return LanesOf(plan, message.piece, backward).second.direct;
    });
    absl::c_move(DirectMessages(plan, backward, payload.dtype),
                 std::back_inserter(messages));
  }
  return plan;
}

}  // namespace mimo
