#include "comm/inproc/inproc_communicator.h"

#include <cstring>
#include <thread>
#include <utility>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "comm/base/reduce.h"

namespace mimo {
namespace {

// Element `begin` of a buffer; also of one that is null, where there are none.
const char* At(const void* buffer, int64_t begin, DType dtype) {
  return static_cast<const char*>(buffer) + begin * SizeOf(dtype);
}
char* At(void* buffer, int64_t begin, DType dtype) {
  return static_cast<char*>(buffer) + begin * SizeOf(dtype);
}

void Copy(void* to, const void* from, int64_t count, DType dtype) {
  if (to != from && count > 0) std::memcpy(to, from, count * SizeOf(dtype));
}

// The place in the batch, from `i` on, of the next transfer of this kind.
int Next(absl::Span<const Transfer> transfers, size_t i, Transfer::Kind kind,
         int peer) {
  while (i < transfers.size() &&
         (transfers[i].kind != kind || transfers[i].peer != peer))
    ++i;
  return static_cast<int>(i);
}

void CheckOnHost(Stream stream) {
  CHECK(stream.device == Device::kCpu)
      << "inproc: found a GPU's stream, wanted the CPU's";
}

}  // namespace

InprocCommunicator::InprocCommunicator(std::shared_ptr<InprocGroup> group,
                                       int rank,
                                       std::shared_ptr<InprocPresence> presence)
    : Communicator(group->name, group->members, rank),
      group_(std::move(group)),
      presence_(std::move(presence)),
      from_(size()),
      to_(size()),
      cursors_(size()) {
  presence_->places.emplace_back(group_, rank);
}

InprocCommunicator::~InprocCommunicator() { Retire(); }

void InprocCommunicator::Collective(InprocGroup::Slot slot,
                                    absl::FunctionRef<void()> work) {
  slot.operation = current();
  group_->slots[rank()] = std::move(slot);
  if (!group_->gate.Enter()) return Fail(group_->Why(current(), rank()));
  // Every rank comes to the same result.
  const absl::Status difference = group_->Difference();
  if (difference.ok()) work();
  group_->gate.Leave();
  if (difference.ok()) return;
  group_->Fail(difference);
  Fail(difference);
}

void InprocCommunicator::DoAllReduce(const void* send, void* recv,
                                     int64_t count, DType dtype, ReduceOp op,
                                     Stream stream) {
  CheckOnHost(stream);
  Collective({.send = send, .recv = recv}, [&] {
    for (int p = 0; p < size(); ++p) {
      from_[p] = slot(p).send;
      to_[p] = slot(p).recv;
    }
    ReduceRange(from_, absl::MakeSpan(to_), count * rank() / size(),
                count * (rank() + 1) / size(), dtype, op);
  });
}

void InprocCommunicator::DoAllGather(const void* send, void* recv,
                                     int64_t count, DType dtype,
                                     Stream stream) {
  CheckOnHost(stream);
  Collective({.send = send}, [&] {
    for (int p = 0; p < size(); ++p)
      Copy(At(recv, p * count, dtype), slot(p).send, count, dtype);
  });
}

void InprocCommunicator::DoReduceScatter(const void* send, void* recv,
                                         int64_t count, DType dtype,
                                         ReduceOp op, Stream stream) {
  CheckOnHost(stream);
  Collective({.send = send}, [&] {
    for (int p = 0; p < size(); ++p)
      from_[p] = At(slot(p).send, rank() * count, dtype);
    ReduceRange(from_, absl::MakeSpan(&recv, 1), 0, count, dtype, op);
  });
}

void InprocCommunicator::DoBroadcast(void* data, int64_t count, DType dtype,
                                     int root, Stream stream) {
  CheckOnHost(stream);
  Collective({.send = data},
             [&] { Copy(data, slot(root).send, count, dtype); });
}

void InprocCommunicator::DoAllToAll(const void* send,
                                    absl::Span<const int64_t> send_counts,
                                    void* recv,
                                    absl::Span<const int64_t> recv_counts,
                                    DType dtype, Stream stream) {
  CheckOnHost(stream);
  Collective(
      {.send = send, .send_counts = send_counts, .recv_counts = recv_counts},
      [&] {
        int64_t to = 0;
        for (int p = 0; p < size(); ++p) {
          int64_t from = 0;
          for (int q = 0; q < rank(); ++q) from += slot(p).send_counts[q];
          Copy(At(recv, to, dtype), At(slot(p).send, from, dtype),
               recv_counts[p], dtype);
          to += recv_counts[p];
        }
      });
}

void InprocCommunicator::DoBarrier(Stream stream) {
  CheckOnHost(stream);
  Collective({}, [] {});
}

absl::StatusOr<std::unique_ptr<Communicator>> InprocCommunicator::DoSplit(
    const std::string& name, absl::Span<const std::vector<int>> groups) {
  const std::vector<int>* own = nullptr;  // my group
  int own_rank = 0;
  for (const std::vector<int>& group : groups)
    for (int i = 0; i < group.size(); ++i)
      if (group[i] == rank()) own = &group, own_rank = i;
  InprocGroup::Slot mine = {.name = &name, .groups = groups};
  if (own != nullptr && own_rank == 0) {
    std::vector<int> part;
    for (int member : *own) part.push_back(members()[member]);
    mine.part = std::make_shared<InprocGroup>(name, std::move(part));
  }
  std::unique_ptr<Communicator> part;
  Collective(std::move(mine), [&] {
    if (own != nullptr)
      part = std::make_unique<InprocCommunicator>(slot((*own)[0]).part,
                                                  own_rank, presence_);
  });
  group_->slots[rank()].part = nullptr;
  return part;
}

void InprocCommunicator::DoAbort(const absl::Status& why) { group_->Fail(why); }

void InprocCommunicator::DoExchange(absl::Span<const Transfer> transfers,
                                    Stream stream) {
  CheckOnHost(stream);
  for (int peer = 0; peer < size(); ++peer)
    cursors_[peer] = {Next(transfers, 0, Transfer::kSend, peer),
                      Next(transfers, 0, Transfer::kRecv, peer), false};
  const int end = static_cast<int>(transfers.size());
  const std::atomic<uint32_t>& bell = group_->bells[rank()].rings;
  while (true) {
    const uint32_t rings = bell.load(std::memory_order_acquire);
    bool moved = false, pending = false, left = false;
    for (int peer = 0; peer < size(); ++peer) {
      moved |= Progress(transfers, peer);
      if (cursors_[peer].send == end && cursors_[peer].recv == end) continue;
      pending = true;
      left |= group_->left[peer].load(std::memory_order_acquire);
    }
    if (group_->failed.load(std::memory_order_acquire)) break;
    if (!pending) return;
    // A peer's last transfer rings before the peer leaves.
    if (moved || bell.load(std::memory_order_acquire) != rings) continue;
    if (left) break;
    bell.wait(rings, std::memory_order_acquire);
  }
  Withdraw();
  Fail(group_->Why(current(), rank()));
}

bool InprocCommunicator::Progress(absl::Span<const Transfer> transfers,
                                  int peer) {
  using Channel = InprocGroup::Channel;
  Cursor& cursor = cursors_[peer];
  const int end = static_cast<int>(transfers.size());
  bool moved = false;
  while (cursor.send < end) {
    Channel& channel = group_->channel(rank(), peer);
    if (!cursor.posted) {
      const Transfer& send = transfers[cursor.send];
      channel.data = send.data;
      channel.count = send.count;
      channel.dtype = send.dtype;
      channel.state.store(Channel::kFull, std::memory_order_release);
      group_->bells[peer].Ring();
      cursor.posted = moved = true;
    }
    if (channel.state.load(std::memory_order_acquire) != Channel::kTaken) break;
    channel.state.store(Channel::kEmpty, std::memory_order_relaxed);
    cursor.posted = false;
    cursor.send = Next(transfers, cursor.send + 1, Transfer::kSend, peer);
    moved = true;
  }
  while (cursor.recv < end) {
    Channel& channel = group_->channel(peer, rank());
    auto full = Channel::kFull;
    if (!channel.state.compare_exchange_strong(full, Channel::kTaking,
                                               std::memory_order_acq_rel))
      break;
    const Transfer& recv = transfers[cursor.recv];
    if (channel.count == recv.count && channel.dtype == recv.dtype) {
      Copy(recv.data, channel.data, recv.count, recv.dtype);
    } else {
      group_->Fail(absl::FailedPreconditionError(absl::StrCat(
          group_->Title(), ": rank ", members()[peer], " sends ", channel.count,
          " ", Name(channel.dtype), " but rank ", members()[rank()],
          " receives ", recv.count, " ", Name(recv.dtype))));
    }
    channel.state.store(Channel::kTaken, std::memory_order_release);
    group_->bells[peer].Ring();
    cursor.recv = Next(transfers, cursor.recv + 1, Transfer::kRecv, peer);
    moved = true;
  }
  return moved;
}

void InprocCommunicator::Withdraw() {
  using Channel = InprocGroup::Channel;
  for (int peer = 0; peer < size(); ++peer) {
    if (!cursors_[peer].posted) continue;
    std::atomic<Channel::State>& state = group_->channel(rank(), peer).state;
    auto full = Channel::kFull;
    if (state.compare_exchange_strong(full, Channel::kEmpty)) continue;
    // The peer is reading; it stops for nothing.
    while (state.load(std::memory_order_acquire) == Channel::kTaking)
      std::this_thread::yield();
  }
}

}  // namespace mimo
