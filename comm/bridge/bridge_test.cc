#include "comm/bridge/bridge.h"

#include <algorithm>
#include <random>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "comm/bridge/bridge_testing.h"
#include "comm/inproc/inproc.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

using ::testing::HasSubstr;

// Element x of the global tensor [outer, N, inner] of micro-batch `m`; of a
// gradient, the part that cp rank `cp` holds. Small enough that sums are exact.
template <typename T>
T Value(int64_t x, int m, int cp) {
  if constexpr (std::is_same_v<T, uint8_t>) {
    return (x * 7 + m * 3 + cp * 5) % 16;
  } else {
    return x + 100000 * m + 7 * (cp + 1) * (x % 11);
  }
}

// Rows [first, first + rows) of the global tensor, [outer, rows, inner].
template <typename T, typename F>
std::vector<T> Slice(const BridgePayload& payload, int64_t first, int64_t rows,
                     F&& value) {
  int64_t total = 0;
  for (int64_t n : payload.source_rows) total += n;
  std::vector<T> slice;
  for (int64_t o = 0; o < payload.outer; ++o) {
    for (int64_t i = 0; i < rows * payload.inner; ++i) {
      slice.push_back(value((o * total + first) * payload.inner + i));
    }
  }
  return slice;
}

// What a rank of a bridge sends, receives and should receive in both
// directions of micro-batch `m`.
template <typename T>
struct MicroBatch {
  BridgePayload payload;
  std::vector<T> activation, gradient;  // sent
  std::vector<T> received, want, received_grad, want_grad;
  bool source = false, destination = false;

  MicroBatch(const BridgeCase& c, const BridgePayload& of, int m, int rank)
      : payload(of) {
    const auto sum = [&](const std::vector<int64_t>& rows, int lanes) {
      int64_t first = 0;
      for (int i = 0; i < lanes; ++i) first += rows[i];
      return first;
    };
    const auto find = [&](const BridgeSide& side) {
      return static_cast<int>(
          std::find(side.ranks.begin(), side.ranks.end(), rank) -
          side.ranks.begin());
    };
    const int s = find(c.source), d = find(c.destination);
    const int cp = c.destination.cp, tp = c.destination.tp;
    source = s < static_cast<int>(c.source.ranks.size());
    destination = d < static_cast<int>(c.destination.ranks.size());
    const T poison = 99;
    if (source) {
      const int lane = s / c.source.tp;
      const int64_t first = sum(payload.source_rows, lane);
      const int64_t rows = payload.source_rows[lane];
      activation = Slice<T>(payload, first, rows,
                            [&](int64_t x) { return Value<T>(x, m, 0); });
      want_grad = Slice<T>(payload, first, rows, [&](int64_t x) {
        T total = 0;
        for (int k = 0; k < cp; ++k) total += Value<T>(x, m, k + 1);
        return total;
      });
      received_grad.assign(want_grad.size() + 1, poison);
    }
    if (destination) {
      const int lane = d / (cp * tp);
      const int64_t first = sum(payload.destination_rows, lane);
      const int64_t rows = payload.destination_rows[lane];
      want = Slice<T>(payload, first, rows,
                      [&](int64_t x) { return Value<T>(x, m, 0); });
      gradient = Slice<T>(payload, first, rows, [&](int64_t x) {
        return Value<T>(x, m, d / tp % cp + 1);
      });
      received.assign(want.size() + 1, poison);
    }
    // Nothing is written behind the end.
    if (source) want_grad.push_back(poison);
    if (destination) want.push_back(poison);
  }

  Bridge::Pass Forward() {
    return {payload, source ? Data(activation) : nullptr,
            destination ? Data(received) : nullptr};
  }
  Bridge::Pass Backward() {
    return {payload, destination ? Data(gradient) : nullptr,
            source ? Data(received_grad) : nullptr};
  }
  bool ForwardCame() const { return received == want; }
  bool BackwardCame() const { return received_grad == want_grad; }

 private:
  static T* Data(std::vector<T>& v) {
    static T none;
    return v.empty() ? &none : v.data();
  }
};

absl::Status Differs(const char* what, int m) {
  return absl::DataLossError(
      absl::StrCat(what, " of micro-batch ", m, " differs"));
}

// Both directions of three micro-batches: each alone, then two in flight.
template <typename T>
absl::Status Check(const BridgeCase& c, Communicator& world,
                   const std::vector<BridgePayload>& payloads) {
  MIMO_ASSIGN_OR_RETURN(auto made,
                        MakeBridge(world, c.source, c.destination, c.routing));
  if (made.bridge == nullptr) return absl::OkStatus();
  Bridge& bridge = *made.bridge;
  std::vector<MicroBatch<T>> batches;
  for (size_t m = 0; m < payloads.size(); ++m) {
    batches.emplace_back(c, payloads[m], m, world.rank());
  }
  const int last = static_cast<int>(batches.size()) - 1;
  MIMO_RETURN_IF_ERROR(bridge.Forward(batches[0].Forward(), Stream()));
  for (int m = 1; m <= last; ++m) {
    if (!batches[m - 1].ForwardCame()) return Differs("activation", m - 1);
    MIMO_RETURN_IF_ERROR(bridge.ForwardAndBackward(
        batches[m].Forward(), batches[m - 1].Backward(), Stream()));
    if (!batches[m - 1].BackwardCame()) return Differs("gradient", m - 1);
  }
  if (!batches[last].ForwardCame()) return Differs("activation", last);
  MIMO_RETURN_IF_ERROR(bridge.Backward(batches[last].Backward(), Stream()));
  if (!batches[last].BackwardCame()) return Differs("gradient", last);
  return made.all->Health();
}

void ExpectDelivers(const BridgeCase& c,
                    const std::vector<BridgePayload>& payloads) {
  const int size = BridgeRanks(c.source, c.destination).back() + 1;
  const auto results = RunRanks(size, [&](Communicator& world) {
    return Check<float>(c, world, payloads);
  });
  for (int rank = 0; rank < size; ++rank) {
    EXPECT_TRUE(results[rank].ok()) << "rank " << rank << ": " << results[rank];
  }
}

// A payload and others with the rows dealt otherwise, one without any.
std::vector<BridgePayload> Uneven(const BridgePayload& payload) {
  BridgePayload empty = payload, uneven = payload;
  for (int64_t& n : empty.source_rows) n = 0;
  for (int64_t& n : empty.destination_rows) n = 0;
  uneven.source_rows.back() += uneven.source_rows.front();
  uneven.source_rows.front() -= payload.source_rows.front();
  uneven.destination_rows.front() += uneven.destination_rows.back();
  uneven.destination_rows.back() -= payload.destination_rows.back();
  return {payload, empty, uneven, payload};
}

TEST(Bridge, LayoutsOfTheReference) {
  // The rows of the tables in which Megatron's leaders are listed, and more:
  // 2 to 3, cp on either side, overlapping spans, the same ranks.
  const std::vector<std::pair<BridgeSide, BridgeSide>> layouts = {
      {Stage(4, 1, 1, 4), Stage(0, 1, 1, 4)},
      {Stage(4, 2, 1, 2), Stage(0, 2, 1, 2)},
      {Stage(4, 4, 1, 1), Stage(0, 1, 1, 4)},
      {Stage(4, 4, 1, 1), Stage(0, 2, 1, 2)},
      {Stage(4, 1, 1, 4), Stage(0, 4, 1, 1)},
      {Stage(4, 1, 1, 4), Stage(0, 1, 1, 2)},
      {Stage(4, 2, 1, 2), Stage(0, 2, 1, 1)},
      {Stage(2, 1, 1, 2), Stage(4, 4, 1, 1)},
      {Stage(2, 3, 1, 2), Stage(0, 1, 1, 1)},
      {Stage(16, 1, 1, 1), Stage(0, 2, 1, 4)},
      {{2, 1, 2, {2, 3, 6, 7}}, {2, 1, 2, {8, 9, 12, 13}}},
      {Stage(0, 2, 1, 1), Stage(2, 3, 1, 1)},
      {Stage(0, 3, 1, 2), Stage(6, 2, 1, 1)},
      {Stage(0, 1, 2, 2), Stage(4, 1, 1, 2)},
      {Stage(0, 2, 1, 1), Stage(2, 1, 2, 2)},
      {Stage(0, 1, 2, 1), Stage(2, 2, 2, 1)},
      {Stage(0, 2, 1, 2), Stage(2, 1, 1, 4)},
      {Stage(0, 4, 1, 1), Stage(1, 1, 2, 2)},
      {Stage(0, 4, 1, 2), Stage(0, 2, 1, 4)},
      {Stage(0, 2, 1, 4), Stage(0, 4, 1, 2)},
      {Stage(0, 2, 1, 2), Stage(0, 1, 2, 2)},
      {Stage(0, 3, 1, 2), Stage(0, 2, 1, 3)},
  };
  for (const auto& [source, destination] : layouts) {
    BridgeCase c{source, destination, {}, BridgeRouting::kShared};
    SCOPED_TRACE(absl::StrCat("dp ", source.dp, " cp ", source.cp, " tp ",
                              source.tp, " -> dp ", destination.dp, " cp ",
                              destination.cp, " tp ", destination.tp));
    // [N, H], [S, B, H] and a size that no share divides.
    for (auto [outer, inner] : {std::pair(1, 16), {4, 8}, {3, 5}}) {
      const BridgePayload payload{
          .outer = outer,
          .inner = inner,
          .source_rows = NearEqualRows(24, source.dp * source.cp),
          .destination_rows = NearEqualRows(24, destination.dp)};
      c.routing = BridgeRouting::kShared;
      ExpectDelivers(c, Uneven(payload));
      for (auto other : {BridgeRouting::kDirect, BridgeRouting::kLeader}) {
        c.routing = other;
        if (CheckBridgeSides(source, destination, other).ok()) {
          ExpectDelivers(c, Uneven(payload));
        }
      }
    }
  }
}

TEST(Bridge, SizesOfTheReference) {
  struct Case {
    BridgeSide source, destination;
    BridgePayload payload;
  };
  const Case cases[] = {
      // Source lanes of [16, 128, 512] make [32, 128, 512].
      {Stage(0, 2, 1, 2),
       Stage(4, 1, 1, 4),
       {.inner = 128 * 512, .source_rows = {16, 16}, .destination_rows = {32}}},
      // A gradient of 16 rows gives each of four lanes 4.
      {Stage(0, 4, 1, 1),
       Stage(4, 1, 1, 4),
       {.inner = 128, .source_rows = {4, 4, 4, 4}, .destination_rows = {16}}},
      // 577 x 128 each, 2308 x 128 together, and back.
      {Stage(0, 4, 1, 1),
       Stage(4, 1, 1, 1),
       {.inner = 128,
        .source_rows = {577, 577, 577, 577},
        .destination_rows = {2308}}},
      {Stage(0, 1, 1, 1),
       Stage(1, 4, 1, 1),
       {.inner = 128,
        .source_rows = {2308},
        .destination_rows = {577, 577, 577, 577}}},
      // The same ranks, S 8, B 2 a lane, H 128.
      {Stage(0, 4, 1, 2),
       Stage(0, 2, 1, 4),
       {.outer = 8,
        .inner = 128,
        .source_rows = {2, 2, 2, 2},
        .destination_rows = {4, 4}}},
  };
  for (const Case& c : cases) {
    ExpectDelivers({c.source,
                    c.destination,
                    {},
                    DefaultBridgeRouting(c.source, c.destination)},
                   {c.payload, c.payload});
  }
}

// Samples of as many tokens as they have, dealt to the lanes of either side;
// the fan-in's gradients come back as unevenly as its activations went.
TEST(Bridge, UnevenSamples) {
  const std::vector<int64_t> samples = {5, 0, 3, 7, 1, 2};
  for (auto [from, to] : {std::pair(2, 3), {3, 2}, {6, 1}, {1, 6}, {6, 3}}) {
    BridgeCase c{Stage(0, from, 1, 2),
                 Stage(2 * from, to, 2, 1),
                 {},
                 BridgeRouting::kShared};
    for (int64_t outer : {1, 4}) {
      ExpectDelivers(c, {{.outer = outer,
                          .inner = 6,
                          .source_rows = *RowsOfLanes(samples, from),
                          .destination_rows = *RowsOfLanes(samples, to)}});
    }
  }
}

TEST(Bridge, RandomLayouts) {
  constexpr int kCases = 250;
  const auto results = RunRanks(16, [&](Communicator& world) -> absl::Status {
    std::mt19937 random(2);
    for (int i = 0; i < kCases; ++i) {
      const BridgeCase c = RandomBridgeCase(random);
      const auto payloads = Uneven(c.payload);
      const absl::Status status = c.payload.dtype == DType::kUInt8
                                      ? Check<uint8_t>(c, world, payloads)
                                      : Check<float>(c, world, payloads);
      if (!status.ok()) {
        const auto plan =
            PlanBridge(c.source, c.destination, payloads[0], c.routing);
        return absl::Status(status.code(),
                            absl::StrCat("case ", i, ": ", status.message(),
                                         "\n", plan->ToString()));
      }
    }
    return absl::OkStatus();
  });
  for (const absl::Status& status : results) EXPECT_TRUE(status.ok()) << status;
}

TEST(Bridge, OneBatchACall) {
  const BridgeCase c{
      Stage(0, 2, 1, 2), Stage(4, 3, 1, 1), {}, BridgeRouting::kShared};
  const BridgePayload payload{
      .inner = 8, .source_rows = {9, 9}, .destination_rows = {6, 6, 6}};
  const auto results = RunRanks(7, [&](Communicator& world) -> absl::Status {
    MIMO_ASSIGN_OR_RETURN(
        auto made, MakeBridge(world, c.source, c.destination, c.routing));
    MicroBatch<float> batch(c, payload, 0, world.rank());
    for (int calls = 1; calls <= 3; ++calls) {
      MIMO_RETURN_IF_ERROR(
          calls == 1   ? made.bridge->Forward(batch.Forward(), Stream())
          : calls == 2 ? made.bridge->Backward(batch.Backward(), Stream())
                       : made.bridge->ForwardAndBackward(
                             batch.Forward(), batch.Backward(), Stream()));
      const std::vector<Operation> made_calls = made.all->LastOperations();
      EXPECT_EQ(made_calls.size(), calls);
      EXPECT_EQ(made_calls.back().kind, Operation::kExchange);
    }
    return absl::OkStatus();
  });
  for (const absl::Status& s : results) EXPECT_TRUE(s.ok()) << s;
}

TEST(Bridge, MorePayloadsThanPlansAreKept) {
  const BridgeCase c{
      Stage(0, 2, 1, 2), Stage(4, 1, 2, 2), {}, BridgeRouting::kShared};
  std::vector<BridgePayload> payloads;
  for (int i = 0; i < 30; ++i) {
    payloads.push_back({.outer = 2,
                        .inner = 3,
                        .source_rows = {i % 10, 5},
                        .destination_rows = {i % 10 + 5}});
  }
  ExpectDelivers(c, payloads);
}

TEST(Bridge, GathersRowCounts) {
  const BridgeSide source = Stage(0, 2, 1, 2), destination = Stage(4, 3, 1, 1);
  const auto run = [&](bool agree) {
    return RunRanks(7, [&](Communicator& world) -> absl::Status {
      MIMO_ASSIGN_OR_RETURN(auto made, MakeBridge(world, source, destination,
                                                  BridgeRouting::kShared));
      const int rank = world.rank();
      const int64_t source_rows = rank == 3 && !agree ? 5 : 10 * (rank / 2);
      MIMO_ASSIGN_OR_RETURN(
          const BridgePayload payload,
          made.bridge->GatherRows({.inner = 4}, source_rows, rank == 5 ? 10 : 0,
                                  Stream()));
      EXPECT_THAT(payload.source_rows, testing::ElementsAre(0, 10));
      EXPECT_THAT(payload.destination_rows, testing::ElementsAre(0, 10, 0));
      EXPECT_EQ(payload.inner, 4);
      return absl::OkStatus();
    });
  };
  for (const absl::Status& s : run(true)) EXPECT_TRUE(s.ok()) << s;
  for (const absl::Status& s : run(false)) {
    EXPECT_THAT(std::string(s.message()),
                HasSubstr("source lane 1 has 5 rows on rank 3 and 10 on rank "
                          "2, wanted the same"));
  }
}

}  // namespace
}  // namespace mimo
