#include "comm/bridge/bridge.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/base/device.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

// Memory that holds a lane: pieces packed, from the lane's element `begin` on;
// or the tensor [outer, pitch].
struct View {
  char* data = nullptr;
  bool packed = true;
  int64_t begin = 0, pitch = 0;
};

int64_t PitchOf(const View& v, const BridgeRange& r) {
  return v.packed ? r.width : v.pitch;
}
// Of element x of the piece that the range is of.
char* AddressOf(const View& v, const BridgeRange& r, int64_t x, int64_t size) {
  const int64_t origin = v.packed ? r.packed - v.begin : r.strided;
  const int64_t row = x / r.width, column = x % r.width;
  return v.data + (origin + row * PitchOf(v, r) + column) * size;
}

// Copies a range from one lane's memory to another's: three rectangles of the
// piece at most, as the ends may lie within its rows.
void CopyRange(const View& to, const BridgeRange& at, const View& from,
               const BridgeRange& range, int64_t size, Stream stream) {
  const int64_t width = range.width;
  for (int64_t x = range.begin; x < range.end;) {
    const int64_t run = std::min(width - x % width, range.end - x);
    const int64_t rows = run == width ? (range.end - x) / width : 1;
    CopyBytes2D(AddressOf(to, at, x, size), PitchOf(to, at) * size,
                AddressOf(from, range, x, size), PitchOf(from, range) * size,
                run * size, rows, stream);
    x += rows * run;
  }
}

absl::Status CheckGroup(const char* name, const Communicator* group,
                        const std::vector<int>& ranks) {
  if (group == nullptr ? ranks.size() > 1
                       : group->members() != absl::MakeConstSpan(ranks)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "bridge: the ", name, " is of ranks ",
        group == nullptr ? "(none)" : absl::StrJoin(group->members(), ","),
        ", wanted ", absl::StrJoin(ranks, ",")));
  }
  return absl::OkStatus();
}

}  // namespace

struct Bridge::Prepared {
  BridgePayload payload;
  BridgeDirection forward, backward;
};

// What the end of a call needs of its beginning.
struct Bridge::Moving {
  View own, to, payload;
};

Bridge::Bridge(const BridgeSide& source, const BridgeSide& destination,
               BridgeRouting routing, const BridgeGroups& groups)
    : source_(source),
      destination_(destination),
      routing_(routing),
      groups_(groups),
      rank_(groups.bridge->members()[groups.bridge->rank()]),
      source_place_(PlaceOnSource(source, rank_)),
      destination_place_(PlaceOnDestination(destination, rank_)) {}

Bridge::~Bridge() {
  for (auto& direction : memory_) {
    for (Memory& memory : direction) {
      if (memory.data != nullptr) FreeMemory(memory.device, memory.data);
    }
  }
}

absl::StatusOr<std::unique_ptr<Bridge>> Bridge::Create(
    const BridgeSide& source, const BridgeSide& destination,
    BridgeRouting routing, const BridgeGroups& groups) {
  MIMO_RETURN_IF_ERROR(CheckBridgeSides(source, destination, routing));
  std::vector<int> members(groups.bridge->members().begin(),
                           groups.bridge->members().end());
  std::sort(members.begin(), members.end());
  if (const std::vector<int> wanted = BridgeRanks(source, destination);
      members != wanted) {
    return absl::InvalidArgumentError(absl::StrCat(
        "bridge: its group is of ranks ", absl::StrJoin(members, ","),
        ", wanted ", absl::StrJoin(wanted, ",")));
  }
  auto bridge =
      std::unique_ptr<Bridge>(new Bridge(source, destination, routing, groups));
  // The ranks of a side that differ from this one in tp or in cp alone.
  const auto group = [](const BridgeSide& side, int first, int count,
                        int step) {
    std::vector<int> ranks;
    for (int i = 0; i < count; ++i)
      ranks.push_back(side.ranks[first + i * step]);
    return ranks;
  };
  if (const BridgePlace& at = bridge->source_place_; at.lane >= 0) {
    MIMO_RETURN_IF_ERROR(
        CheckGroup("source's tp group", groups.source_tp,
                   group(source, at.lane * source.tp, source.tp, 1)));
  }
  if (const BridgePlace& at = bridge->destination_place_; at.lane >= 0) {
    const int cp = destination.cp, tp = destination.tp;
    const int lane = at.lane * cp * tp;
    MIMO_RETURN_IF_ERROR(
        CheckGroup("destination's tp group", groups.destination_tp,
                   group(destination, lane + at.cp * tp, tp, 1)));
    MIMO_RETURN_IF_ERROR(CheckGroup("destination's cp group",
                                    groups.destination_cp,
                                    group(destination, lane + at.tp, cp, tp)));
  }
  return bridge;
}

absl::Status Bridge::Reserve(Memory& memory, int64_t bytes, Stream stream) {
  if (bytes <= memory.bytes) return absl::OkStatus();
  if (memory.data != nullptr) {
    Synchronize(stream);  // earlier calls may be using it
    FreeMemory(memory.device, memory.data);
  }
  memory = {AllocateMemory(stream.device, bytes), bytes, stream.device};
  if (memory.data == nullptr) {
    memory.bytes = 0;
    return absl::ResourceExhaustedError(
        absl::StrCat("bridge ", groups_.bridge->name(), ": no memory for ",
                     bytes, " bytes of staging"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const Bridge::Prepared>> Bridge::Prepare(
    const BridgePayload& payload, Stream stream) {
  for (const auto& kept : prepared_) {
    if (kept != nullptr && kept->payload == payload) return kept;
  }
  MIMO_ASSIGN_OR_RETURN(const BridgePlan plan,
                        PlanBridge(source_, destination_, payload, routing_));
  auto prepared = std::make_shared<Prepared>();
  prepared->payload = payload;
  for (const bool backward : {false, true}) {
    BridgeDirection& direction =
        backward ? prepared->backward : prepared->forward;
    direction = DirectionOf(plan, backward, payload.dtype, rank_, source_place_,
                            destination_place_, groups_.bridge->members());
    Memory* memory = memory_[backward];
    MIMO_RETURN_IF_ERROR(Reserve(memory[kSum], direction.sum_bytes, stream));
    MIMO_RETURN_IF_ERROR(Reserve(memory[kPack], direction.pack_bytes, stream));
    MIMO_RETURN_IF_ERROR(Reserve(memory[kRecv], direction.recv_bytes, stream));
  }
  prepared_[next_prepared_] = prepared;
  next_prepared_ = (next_prepared_ + 1) % kKept;
  return prepared;
}

// Sums and packs what this rank sends and adds its transfers to the batch.
Bridge::Moving Bridge::Begin(const BridgeDirection& direction, const Pass& pass,
                             Stream stream) {
  const bool backward = direction.backward;
  CHECK((backward ? pass.recv : pass.send) == nullptr ||
        source_place_.lane >= 0)
      << "bridge " << groups_.bridge->name() << ": found a buffer, but rank "
      << rank_ << " is not in the source grid";
  CHECK((backward ? pass.send : pass.recv) == nullptr ||
        destination_place_.lane >= 0)
      << "bridge " << groups_.bridge->name() << ": found a buffer, but rank "
      << rank_ << " is not in the destination grid";
  const DType dtype = direction.dtype;
  const int64_t size = SizeOf(dtype);
  const Memory* memory = memory_[backward];
  const auto staging = [&](Stage stage, int64_t begin) {
    return View{static_cast<char*>(memory[stage].data), true, begin, 0};
  };
  Moving moving;
  View& own = moving.own;  // what this rank has of its lane to send
  if (const BridgeDirection::End& from = direction.from; from.on) {
    CHECK(pass.send != nullptr)
        << "bridge " << groups_.bridge->name() << ": rank " << rank_
        << " has a lane to send, but no buffer";
    own = {static_cast<char*>(const_cast<void*>(pass.send)), from.packed, 0,
           from.pitch};
    const auto pack = [&](const View& packed) {
      for (const BridgeRange& range : from.ranges) {
        CopyRange(packed, range, own, range, size, stream);
      }
    };
    Communicator* cp = groups_.destination_cp;
    const int64_t mine = destination_place_.cp * from.share;
    switch (direction.sum) {
      case BridgeDirection::Sum::kNone:
        break;
      case BridgeDirection::Sum::kTensor: {
        char* sum = staging(kSum, 0).data;
        cp->AllReduce(own.data, sum, from.count, dtype, ReduceOp::kSum, stream);
        own.data = sum;
        break;
      }
      case BridgeDirection::Sum::kBlock: {
        const View sum = staging(kSum, from.block + mine);
        cp->ReduceScatter(own.data + from.block * size, sum.data, from.share,
                          dtype, ReduceOp::kSum, stream);
        own = sum;
        break;
      }
      case BridgeDirection::Sum::kPackedBlock: {
        const View sum = staging(kSum, from.block);
        pack(sum);
        cp->ReduceScatter(sum.data, sum.data + mine * size, from.share, dtype,
                          ReduceOp::kSum, stream);
        own = sum;
        break;
      }
    }
    View send = own;
    if (direction.packs) {
      send = staging(kPack, direction.pack_begin);
      pack(send);
    }
    for (const BridgeSlice& slice : from.slices) {
      transfers_.push_back({Transfer::kSend,
                            send.data + (slice.begin - send.begin) * size,
                            slice.count, dtype, slice.peer});
    }
  }

  if (const BridgeDirection::End& to = direction.to; to.on) {
    CHECK(pass.recv != nullptr)
        << "bridge " << groups_.bridge->name() << ": rank " << rank_
        << " has a lane to receive, but no buffer";
    moving.payload = {static_cast<char*>(pass.recv), to.packed, 0, to.pitch};
    moving.to = direction.staged ? staging(kRecv, 0) : moving.payload;
    for (const BridgeSlice& slice : to.slices) {
      transfers_.push_back({Transfer::kRecv,
                            moving.to.data + slice.begin * size, slice.count,
                            dtype, slice.peer});
    }
  }
  return moving;
}

// Lets the receiving lane's ranks complete each other, and unpacks.
void Bridge::Finish(const BridgeDirection& direction, const Moving& moving,
                    Stream stream) {
  const BridgeDirection::End& to = direction.to;
  if (!to.on) return;
  const DType dtype = direction.dtype;
  const int64_t size = SizeOf(dtype);
  const bool to_source = direction.backward;
  const int tp = to_source ? source_.tp : destination_.tp;
  const int cp = to_source ? 1 : destination_.cp;
  Communicator* tp_group =
      to_source ? groups_.source_tp : groups_.destination_tp;
  if (routing_ == BridgeRouting::kShared && !direction.direct) {
    char* block = moving.to.data + to.block * size;
    if (cp > 1 && to.block < to.count) {
      groups_.destination_cp->AllGather(
          block + destination_place_.cp * to.share * size, block, to.share,
          dtype, stream);
    }
    if (tp > 1) {
      tp_group->AllGather(block, moving.to.data, cp * to.share, dtype, stream);
    }
  }
  if (direction.staged) {
    for (const BridgeRange& range : to.ranges) {
      CopyRange(moving.payload, range, moving.to, range, size, stream);
    }
  }
  if (routing_ == BridgeRouting::kLeader && tp > 1) {
    tp_group->Broadcast(moving.payload.data, to.count, dtype,
                        to_source ? tp - 1 : 0, stream);
  }
}

absl::Status Bridge::Run(const Pass* forward, const Pass* backward,
                         Stream stream) {
  std::shared_ptr<const Prepared> prepared[2];
  const Pass* passes[2] = {forward, backward};
  for (int i = 0; i < 2; ++i) {
    if (passes[i] == nullptr) continue;
    MIMO_ASSIGN_OR_RETURN(prepared[i], Prepare(passes[i]->payload, stream));
  }
  // After both are prepared, memory stays where it is.
  const auto direction = [&](int i) -> const BridgeDirection& {
    return i == 0 ? prepared[0]->forward : prepared[1]->backward;
  };
  transfers_.clear();
  Moving moving[2];
  for (int i = 0; i < 2; ++i)
    if (passes[i] != nullptr)
      moving[i] = Begin(direction(i), *passes[i], stream);
  // What stays here goes with what does not, where it can: copies of their own
  // beside an exchange are slower, and slow it down.
  const bool exchange = !transfers_.empty();
  for (int i = 0; i < 2; ++i) {
    if (passes[i] == nullptr) continue;
    const DType dtype = direction(i).dtype;
    const int64_t size = SizeOf(dtype);
    const View& own = moving[i].own;
    const View& to = direction(i).direct ? moving[i].payload : moving[i].to;
    for (const auto& [from, at] : direction(i).copies) {
      if (!exchange || !own.packed || !to.packed) {
        CopyRange(to, at, own, from, size, stream);
        continue;
      }
      for (const auto& [kind, data] :
           {std::pair(Transfer::kSend, AddressOf(own, from, from.begin, size)),
            {Transfer::kRecv, AddressOf(to, at, from.begin, size)}}) {
        transfers_.push_back(
            {kind, data, from.end - from.begin, dtype, groups_.bridge->rank()});
      }
    }
  }
  if (exchange) groups_.bridge->Exchange(transfers_, stream);
  for (int i = 0; i < 2; ++i) {
    if (passes[i] != nullptr) Finish(direction(i), moving[i], stream);
  }
  return absl::OkStatus();
}

absl::Status Bridge::Forward(const Pass& forward, Stream stream) {
  return Run(&forward, nullptr, stream);
}

absl::Status Bridge::Backward(const Pass& backward, Stream stream) {
  return Run(nullptr, &backward, stream);
}

absl::Status Bridge::ForwardAndBackward(const Pass& forward,
                                        const Pass& backward, Stream stream) {
  return Run(&forward, &backward, stream);
}

absl::StatusOr<BridgePayload> Bridge::GatherRows(BridgePayload payload,
                                                 int64_t source_rows,
                                                 int64_t destination_rows,
                                                 Stream stream) {
  Communicator& group = *groups_.bridge;
  std::vector<int64_t> rows(2 * group.size());  // [rank, (source, destination)]
  int64_t* mine = rows.data() + 2 * group.rank();
  mine[0] = source_rows;
  mine[1] = destination_rows;
  const int64_t bytes = rows.size() * sizeof(int64_t);
  Memory& memory = memory_[0][kRows];
  MIMO_RETURN_IF_ERROR(Reserve(memory, bytes, stream));
  char* data = static_cast<char*>(memory.data);
  char* own = data + 2 * group.rank() * sizeof(int64_t);
  CopyBytes(own, mine, 2 * sizeof(int64_t), stream);
  group.AllGather(own, data, 2, DType::kInt64, stream);
  CopyBytes(rows.data(), data, bytes, stream);
  Synchronize(stream);
  MIMO_RETURN_IF_ERROR(group.Health());

  std::map<int, const int64_t*> said;  // by world rank
  for (int i = 0; i < group.size(); ++i) {
    said[group.members()[i]] = rows.data() + 2 * i;
  }
  const auto read = [&](const char* name, const BridgeSide& side, int lanes,
                        int which,
                        std::vector<int64_t>& counts) -> absl::Status {
    const int lane_ranks = static_cast<int>(side.ranks.size()) / lanes;
    counts.clear();
    for (size_t i = 0; i < side.ranks.size(); ++i) {
      const int first = side.ranks[i - i % lane_ranks];
      const int64_t wanted = said.at(first)[which];
      const int64_t found = said.at(side.ranks[i])[which];
      if (i % lane_ranks == 0) counts.push_back(wanted);
      if (found != wanted) {
        return absl::InvalidArgumentError(absl::StrCat(
            "bridge ", group.name(), ": ", name, " lane ", i / lane_ranks,
            " has ", found, " rows on rank ", side.ranks[i], " and ", wanted,
            " on rank ", first, ", wanted the same"));
      }
    }
    return absl::OkStatus();
  };
  MIMO_RETURN_IF_ERROR(
      read("source", source_, source_.dp * source_.cp, 0, payload.source_rows));
  MIMO_RETURN_IF_ERROR(read("destination", destination_, destination_.dp, 1,
                            payload.destination_rows));
  return payload;
}

}  // namespace mimo
