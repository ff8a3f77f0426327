#include <map>
#include <string>
#include <vector>

#include "absl/log/log.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "comm/bridge/bridge_plan.h"

namespace mimo {
namespace {

const char* Name(BridgeRouting routing) {
  switch (routing) {
    case BridgeRouting::kShared:
      return "shared";
    case BridgeRouting::kDirect:
      return "direct";
    case BridgeRouting::kLeader:
      return "leader";
  }
  LOG(FATAL) << "no such routing: " << static_cast<int>(routing);
}

}  // namespace

std::string BridgePlan::ToString() const {
  int64_t rows = 0;
  for (const BridgeLane& lane : source) rows += lane.rows;
  std::string text =
      absl::StrCat("bridge, ", Name(routing), " routing: [", outer, ", ", rows,
                   ", ", inner, "] from ", source.size(), " lanes of ",
                   source[0].ranks.size(), " ranks to ", destination.size(),
                   " of ", destination[0].ranks.size(), "\n");
  // For each rank and direction, what it sends and receives.
  const auto describe = [&](const std::vector<BridgeMessage>& messages,
                            const std::vector<BridgeLane>& lanes,
                            const char* name, bool sends, bool to_source) {
    std::map<int, std::vector<std::string>> slices;
    for (const BridgeMessage& message : messages) {
      const BridgePiece& piece = pieces[message.piece];
      const BridgeLane& lane =
          lanes[sends == to_source ? piece.destination : piece.source];
      const int64_t begin = message.begin - lane.begin;
      const int peer = sends ? message.to : message.from;
      slices[sends ? message.from : message.to].push_back(absl::StrCat(
          "[", begin, ", ", begin + message.count, sends ? ") to " : ") from ",
          message.from == message.to ? "itself" : absl::StrCat(peer)));
    }
    for (size_t i = 0; i < lanes.size(); ++i) {
      const BridgeLane& lane = lanes[i];
      const int size = static_cast<int>(lane.ranks.size());
      const bool sums = sends && to_source && destination_cp > 1;
      const bool gathers = !sends && size > 1 && lane.count > 0 && !lane.direct;
      for (int rank : lane.ranks) {
        absl::StrAppend(
            &text, "  rank ", rank, " (", name, " lane ", i, ", rows [",
            lane.first_row, ", ", lane.first_row + lane.rows, ")) ",
            sums ? "sums over cp, " : "", sends ? "sends " : "receives ",
            slices[rank].empty() ? "nothing"
                                 : absl::StrJoin(slices[rank], ", "));
        if (gathers && routing == BridgeRouting::kShared) {
          absl::StrAppend(&text, "; gathers ", size, " shares of ", lane.share);
        } else if (gathers) {
          absl::StrAppend(&text, "; broadcast by rank ",
                          to_source ? lane.ranks.back() : lane.ranks[0]);
        }
        absl::StrAppend(&text, "\n");
      }
    }
  };
  absl::StrAppend(&text, "forward\n");
  describe(forward, source, "source", true, false);
  describe(forward, destination, "destination", false, false);
  absl::StrAppend(&text, "backward\n");
  describe(backward, destination, "destination", true, true);
  describe(backward, source, "source", false, true);
  return text;
}

}  // namespace mimo
