#include "bench/collectives/bridges.h"

#include <algorithm>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "comm/bridge/bridge.h"
#include "comm/bridge/bridge_testing.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

constexpr int64_t kInner = 4096 / 2;  // elements of a row

struct Layout {
  std::string name;
  BridgeSide source, destination;
};

std::vector<Layout> Layouts(int ranks) {
  const int h = ranks / 2, n = ranks;
  if (h == 1)
    return {{"1 to 1", Stage(0, 1, 1, 1), Stage(1, 1, 1, 1)},
            {"tp 2 to dp 2, same ranks", Stage(0, 1, 1, 2), Stage(0, 2, 1, 1)},
            {"dp 2 to tp 2, same ranks", Stage(0, 2, 1, 1), Stage(0, 1, 1, 2)},
            {"tp 2 to one of them", Stage(0, 1, 1, 2), Stage(1, 1, 1, 1)}};
  const auto name = [](const char* from, int a, const char* to, int b,
                       const char* where) {
    return absl::StrCat(from, " ", a, " to ", to, " ", b, where);
  };
  return {{name("tp", h, "tp", h, ""), Stage(0, 1, 1, h), Stage(h, 1, 1, h)},
          {name("dp", h, "tp", h, ""), Stage(0, h, 1, 1), Stage(h, 1, 1, h)},
          {name("tp", h, "dp", h, ""), Stage(0, 1, 1, h), Stage(h, h, 1, 1)},
          {name("dp", h, "dp", h, ""), Stage(0, h, 1, 1), Stage(h, h, 1, 1)},
          {name("tp", n, "dp", n, ", same ranks"), Stage(0, 1, 1, n),
           Stage(0, n, 1, 1)},
          {name("dp", n, "tp", n, ", same ranks"), Stage(0, n, 1, 1),
           Stage(0, 1, 1, n)}};
}

// A call of a bridge as a contender; null where this rank takes no part.
Contender ContenderOf(Bridge* bridge, const std::string& name, bool backward,
                      const BridgePayload& payload, bool is_source,
                      bool is_destination) {
  return {
      name, [=, &payload](Collective, const void* send, void* recv, int64_t,
                          DType, Stream stream) {
        if (bridge == nullptr) return;
        const Bridge::Pass pass{
            payload, (backward ? is_destination : is_source) ? send : nullptr,
            (backward ? is_source : is_destination) ? recv : nullptr};
        const absl::Status status = backward ? bridge->Backward(pass, stream)
                                             : bridge->Forward(pass, stream);
        CHECK(status.ok()) << status;
      }};
}

absl::Status PrintLayout(Communicator& world, Stream stream,
                         const TableOptions& options, const Layout& layout) {
  const auto& [name, source, destination] = layout;
  const auto has = [&world](const BridgeSide& side) {
    return std::find(side.ranks.begin(), side.ranks.end(), world.rank()) !=
           side.ranks.end();
  };
  std::vector<std::pair<std::string, BridgeWithGroups>> bridges;
  for (const auto& [routing, label] :
       {std::pair(DefaultBridgeRouting(source, destination), "mimo"),
        std::pair(BridgeRouting::kLeader, "leader")}) {
    if (!CheckBridgeSides(source, destination, routing).ok()) continue;
    MIMO_ASSIGN_OR_RETURN(auto made,
                          MakeBridge(world, source, destination, routing));
    bridges.emplace_back(label, std::move(made));
  }
  const int far = source.ranks[0] == destination.ranks[0]
                      ? world.size() - 1
                      : destination.ranks[0];
  const Contender pair = {
      "pair", [&world, far](Collective, const void* send, void* recv,
                            int64_t count, DType dtype, Stream stream) {
        if (world.rank() == 0) world.Send(send, count, dtype, far, stream);
        if (world.rank() == far) world.Recv(recv, count, dtype, 0, stream);
      }};

  for (const bool backward : {false, true})
    for (const int64_t bytes : options.bytes) {
      const int64_t rows = bytes / SizeOf(options.dtype) / kInner;
      if (rows < world.size()) continue;
      const BridgePayload payload{
          .inner = kInner,
          .source_rows = NearEqualRows(rows, source.dp),
          .destination_rows = NearEqualRows(rows, destination.dp),
          .dtype = options.dtype};
      std::vector<Contender> contenders = {pair};
      for (const auto& [label, bridge] : bridges)
        contenders.push_back(ContenderOf(bridge.bridge.get(), label, backward,
                                         payload, has(source),
                                         has(destination)));
      MIMO_ASSIGN_OR_RETURN(
          const std::vector<Timing> timings,
          Measure(world, stream, Collective::kSendRecv, bytes, options.dtype,
                  options.seconds, contenders));
      if (world.rank() != 0) continue;
      std::cout << absl::StreamFormat("| %s | %s | %d |", name,
                                      backward ? "backward" : "forward", bytes);
      for (const Timing& t : timings)
        std::cout << absl::StreamFormat(" %.1f | %.1f | %.2f |", t.us,
                                        t.enqueue_us, bytes / t.us / 1e3);
      std::cout << (timings.size() == 2 ? " | | |" : "")
                << absl::StreamFormat(" %.2f |\n",
                                      timings[0].us / timings[1].us)
                << std::flush;
    }
  return absl::OkStatus();
}

}  // namespace

absl::Status PrintBridgeTable(Communicator& world, Stream stream,
                              const TableOptions& options) {
  CHECK_EQ(world.size() % 2, 0);
  if (world.rank() == 0) {
    std::cout << "\n| bridge | direction | bytes |";
    for (const char* who : {"one pair", "mimo", "leader"})
      std::cout << " " << who << ": us | enqueue us | GB/s |";
    std::cout << " mimo / pair |\n|---|---|---|---|---|---|---|---|---|---|---|"
                 "---|---|\n";
  }
  for (const Layout& layout : Layouts(world.size()))
    MIMO_RETURN_IF_ERROR(PrintLayout(world, stream, options, layout));
  return absl::OkStatus();
}

}  // namespace mimo
