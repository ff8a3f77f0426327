#include "comm/testing/check_bridges.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "comm/bridge/bridge.h"
#include "kernels/base/device.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

using Values = std::vector<float>;  // whole numbers: sums are exact

// Element (o, row, i) of a tensor of the whole line.
float Element(const BridgePayload& payload, int64_t o, int64_t row, int64_t i,
              int seed) {
  const int64_t rows = std::accumulate(payload.source_rows.begin(),
                                       payload.source_rows.end(), int64_t{0});
  return (((o * rows + row) * payload.inner + i) * 37 + seed * 101) % 65521;
}

// Rows [first, first + rows) of the line: [outer, rows, inner].
Values Slice(const BridgePayload& payload, int64_t first, int64_t rows,
             int seed) {
  Values values;
  for (int64_t o = 0; o < payload.outer; ++o)
    for (int64_t row = first; row < first + rows; ++row)
      for (int64_t i = 0; i < payload.inner; ++i)
        values.push_back(Element(payload, o, row, i, seed));
  return values;
}

// The rows of lane `lane`.
Values Lane(const BridgePayload& payload, const std::vector<int64_t>& rows,
            int lane, int seed) {
  const int64_t first =
      std::accumulate(rows.begin(), rows.begin() + lane, int64_t{0});
  return Slice(payload, first, rows[lane], seed);
}

// A copy of host values on the device; poisoned if there is nothing to copy.
class Buffer {
 public:
  Buffer(size_t count, Stream stream) : values_(count, -1), stream_(stream) {
    data_ = AllocateMemory(stream.device, std::max<int64_t>(4, 4 * count));
    CHECK(data_ != nullptr);
    CopyBytes(data_, values_.data(), 4 * count, stream);
  }
  Buffer(const Values& values, Stream stream) : Buffer(values.size(), stream) {
    CopyBytes(data_, values.data(), 4 * values.size(), stream);
  }
  ~Buffer() {
    Synchronize(stream_);
    FreeMemory(stream_.device, data_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() { return data_; }
  const Values& Get() {
    CopyBytes(values_.data(), data_, 4 * values_.size(), stream_);
    Synchronize(stream_);
    return values_;
  }

 private:
  Values values_;
  const Stream stream_;
  void* data_;
};

// Groups of the world, each made once.
class Groups {
 public:
  explicit Groups(Communicator& world) : world_(world) {}

  // This rank's of `groups`, or null; all ranks call it alike.
  absl::StatusOr<Communicator*> Get(
      const std::vector<std::vector<int>>& groups) {
    const auto found = made_.find(groups);
    if (found != made_.end()) return found->second.get();
    MIMO_ASSIGN_OR_RETURN(
        auto group, world_.Split(absl::StrCat("group ", made_.size()), groups));
    return (made_[groups] = std::move(group)).get();
  }

 private:
  Communicator& world_;
  std::map<std::vector<std::vector<int>>, std::unique_ptr<Communicator>> made_;
};

std::vector<BridgeSide> Sides(int world_size) {
  std::vector<BridgeSide> sides;
  for (int size = 1; size <= world_size; ++size)
    for (int offset = 0; offset + size <= world_size; ++offset)
      for (int dp = 1; dp <= size; ++dp)
        for (int cp = 1; cp <= size / dp; ++cp) {
          if (size % (dp * cp) != 0) continue;
          BridgeSide side{dp, cp, size / dp / cp, std::vector<int>(size)};
          std::iota(side.ranks.begin(), side.ranks.end(), offset);
          sides.push_back(std::move(side));
        }
  return sides;
}

// Groups of ranks that differ in tp alone, or in cp alone.
std::vector<std::vector<int>> TpGroups(const BridgeSide& side) {
  std::vector<std::vector<int>> groups;
  for (size_t i = 0; i < side.ranks.size(); i += side.tp)
    groups.emplace_back(side.ranks.begin() + i,
                        side.ranks.begin() + i + side.tp);
  return groups;
}

std::vector<std::vector<int>> CpGroups(const BridgeSide& side) {
  std::vector<std::vector<int>> groups;
  for (int d = 0; d < side.dp; ++d)
    for (int t = 0; t < side.tp; ++t) {
      groups.emplace_back();
      for (int c = 0; c < side.cp; ++c)
        groups.back().push_back(side.ranks[(d * side.cp + c) * side.tp + t]);
    }
  return groups;
}

std::string ToString(const BridgeSide& side) {
  return absl::StrCat("dp ", side.dp, " cp ", side.cp, " tp ", side.tp,
                      " from rank ", side.ranks[0]);
}

// Rows dealt to lanes: nearly alike, or all but one to the last.
std::vector<int64_t> Deal(int64_t rows, int lanes, bool evenly) {
  if (evenly) return NearEqualRows(rows, lanes);
  std::vector<int64_t> dealt(lanes);
  dealt.back() = rows;
  if (lanes > 2 && rows > 0) {
    --dealt.back();
    ++dealt[0];
  }
  return dealt;
}

absl::Status Compare(const Values& found, const Values& want,
                     const std::string& what) {
  for (size_t i = 0; i < want.size(); ++i) {
    if (found[i] != want[i])
      return absl::DataLossError(absl::StrCat(what, ": element ", i, " of ",
                                              want.size(), ": found ", found[i],
                                              ", wanted ", want[i]));
  }
  return absl::OkStatus();
}

// One bridge and one payload, on this rank: forward, backward, both, twice.
absl::Status CheckPayload(Bridge& bridge, const BridgeSide& source,
                          const BridgeSide& destination,
                          const BridgePayload& payload, int rank,
                          const std::string& what, Stream stream) {
  const auto place = [rank](const BridgeSide& side) {
    return std::find(side.ranks.begin(), side.ranks.end(), rank) -
           side.ranks.begin();
  };
  const size_t s = place(source), d = place(destination);
  const bool sends = s < source.ranks.size();
  const bool receives = d < destination.ranks.size();
  const int cp = d / destination.tp % destination.cp;
  absl::Status status;
  for (int turn = 0; turn < 4; ++turn) {
    const auto source_lane = [&](int seed) {
      return sends ? Lane(payload, payload.source_rows, s / source.tp, seed)
                   : Values();
    };
    const auto destination_lane = [&](int seed) {
      return receives ? Lane(payload, payload.destination_rows,
                             d / (destination.tp * destination.cp), seed)
                      : Values();
    };
    // The cp ranks' parts of a gradient: cp rank c has the value minus c, the
    // last has what is lacking.
    Values gradient = destination_lane(100 + turn);
    const Values whole = source_lane(100 + turn);
    for (float& g : gradient) {
      const int n = destination.cp;
      g = cp < n - 1 ? g - cp : g - ((n - 1) * g - (n - 1) * (n - 2) / 2);
    }
    Buffer activations(source_lane(turn), stream);
    Buffer delivered(destination_lane(turn).size(), stream);
    Buffer gradients(gradient, stream);
    Buffer returned(whole.size(), stream);
    const Bridge::Pass forward{payload, sends ? activations.data() : nullptr,
                               receives ? delivered.data() : nullptr};
    const Bridge::Pass backward{payload, receives ? gradients.data() : nullptr,
                                sends ? returned.data() : nullptr};
    if (turn < 2) {
      MIMO_RETURN_IF_ERROR(bridge.Forward(forward, stream));
      MIMO_RETURN_IF_ERROR(bridge.Backward(backward, stream));
    } else {
      MIMO_RETURN_IF_ERROR(
          bridge.ForwardAndBackward(forward, backward, stream));
    }
    status.Update(Compare(delivered.Get(), destination_lane(turn),
                          absl::StrCat(what, ", forward, turn ", turn)));
    status.Update(Compare(returned.Get(), whole,
                          absl::StrCat(what, ", backward, turn ", turn)));
    status.Update(Compare(activations.Get(), source_lane(turn),
                          absl::StrCat(what, ", what was sent")));
  }
  return status;
}

// Even, uneven and empty lanes, batch axis first or not.
std::vector<BridgePayload> SmallPayloads(const BridgeSide& source,
                                         const BridgeSide& destination) {
  std::vector<BridgePayload> payloads;
  for (const int64_t rows : {0, 5, 96})
    for (const bool evenly : {true, false})
      for (const int64_t outer : {1, 3})
        payloads.push_back(
            {.outer = outer,
             .inner = 7,
             .source_rows = Deal(rows, source.dp * source.cp, evenly),
             .destination_rows = Deal(rows, destination.dp, true)});
  return payloads;
}

absl::Status CheckLayout(Groups& groups, const BridgeSide& source,
                         const BridgeSide& destination, BridgeRouting routing,
                         const std::vector<BridgePayload>& payloads, int rank,
                         Stream stream, absl::Status& verdict) {
  BridgeGroups own{};
  MIMO_ASSIGN_OR_RETURN(own.bridge,
                        groups.Get({BridgeRanks(source, destination)}));
  if (source.tp > 1) {
    MIMO_ASSIGN_OR_RETURN(own.source_tp, groups.Get(TpGroups(source)));
  }
  if (destination.tp > 1) {
    MIMO_ASSIGN_OR_RETURN(own.destination_tp,
                          groups.Get(TpGroups(destination)));
  }
  if (destination.cp > 1) {
    MIMO_ASSIGN_OR_RETURN(own.destination_cp,
                          groups.Get(CpGroups(destination)));
  }
  if (own.bridge == nullptr) return absl::OkStatus();
  MIMO_ASSIGN_OR_RETURN(const auto bridge,
                        Bridge::Create(source, destination, routing, own));
  for (const BridgePayload& payload : payloads)
    verdict.Update(CheckPayload(
        *bridge, source, destination, payload, rank,
        absl::StrCat(
            "bridge of ", ToString(source), " to ", ToString(destination),
            ", routing ", static_cast<int>(routing), ", outer ", payload.outer,
            ", rows [", absl::StrJoin(payload.source_rows, ", "), "] to [",
            absl::StrJoin(payload.destination_rows, ", "), "]"),
        stream));
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckBridges(Communicator& world, Stream stream) {
  Groups groups(world);
  const std::vector<BridgeSide> sides = Sides(world.size());
  absl::Status verdict;
  for (const BridgeSide& source : sides)
    for (const BridgeSide& destination : sides)
      for (const BridgeRouting routing :
           {BridgeRouting::kShared, BridgeRouting::kDirect,
            BridgeRouting::kLeader}) {
        if (!CheckBridgeSides(source, destination, routing).ok()) continue;
        MIMO_RETURN_IF_ERROR(CheckLayout(groups, source, destination, routing,
                                         SmallPayloads(source, destination),
                                         world.rank(), stream, verdict));
        MIMO_RETURN_IF_ERROR(world.Health());
      }
  // From all ranks to the last, which copies beside the exchange.
  const int last = world.size() - 1;
  BridgeSide all{1, 1, world.size(), std::vector<int>(world.size())};
  std::iota(all.ranks.begin(), all.ranks.end(), 0);
  MIMO_RETURN_IF_ERROR(CheckLayout(
      groups, all, {1, 1, 1, {last}}, BridgeRouting::kShared,
      {{.inner = 1 << 19, .source_rows = {3}, .destination_rows = {3}}},
      world.rank(), stream, verdict));
  world.Barrier(stream);
  MIMO_RETURN_IF_ERROR(world.Health());
  return verdict;
}

}  // namespace mimo
