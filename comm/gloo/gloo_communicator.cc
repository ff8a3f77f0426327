#include "comm/gloo/gloo_communicator.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/log/check.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "comm/base/reduce.h"
#include "comm/base/watchdog.h"
#include "comm/gloo/mesh.h"
#include "comm/rendezvous/store_board.h"
#include "kernels/base/dtype.h"
#include "kernels/base/status_macros.h"

namespace mimo {
namespace {

// Reductions go by pieces of so many bytes a rank, so that what the others
// sent is still in a cache when it is added.
constexpr int64_t kPiece = 1 << 18;

// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

uint64_t Hash(std::initializer_list<int64_t> values) {
  uint64_t hash = 0;
  for (const int64_t value : values) hash = Mix(hash ^ value);
  return hash;
}

const char* At(const void* data, int64_t bytes) {
  return static_cast<const char*>(data) + bytes;
}
char* At(void* data, int64_t bytes) { return static_cast<char*>(data) + bytes; }

void Copy(const void* from, void* to, int64_t bytes) {
  if (from != to && bytes > 0) std::memcpy(to, from, bytes);
}

class GlooCommunicator final : public Communicator {
 public:
  // What all communicators of a world share.
  struct World {
    Store& store;
    const std::shared_ptr<FailureBoard> board;
    const std::shared_ptr<gloo::transport::tcp::Device> device;
    const absl::Duration timeout;
  };

  GlooCommunicator(const World& world, std::string path, std::string name,
                   std::vector<int> members, int rank)
      : Communicator(std::move(name), std::move(members), rank),
        world_(world),
        path_(std::move(path)),
        sent_(size()),
        received_(size()) {}
  ~GlooCommunicator() override { Retire(); }

  // Connects the group's ranks, under the store's keys `path`/....
  absl::Status Connect() {
    if (size() == 1) return absl::OkStatus();
    MIMO_ASSIGN_OR_RETURN(
        mesh_, Mesh::Connect(world_.device, world_.store, *world_.board,
                             path_ + "/", rank(), size(), world_.timeout));
    return absl::OkStatus();
  }

 protected:
  void DoAllReduce(const void* send, void* recv, int64_t count, DType dtype,
                   ReduceOp op, Stream stream) override;
  void DoAllGather(const void* send, void* recv, int64_t count, DType dtype,
                   Stream stream) override;
  void DoReduceScatter(const void* send, void* recv, int64_t count, DType dtype,
                       ReduceOp op, Stream stream) override;
  void DoBroadcast(void* data, int64_t count, DType dtype, int root,
                   Stream stream) override;
  void DoAllToAll(const void* send, absl::Span<const int64_t> send_counts,
                  void* recv, absl::Span<const int64_t> recv_counts,
                  DType dtype, Stream stream) override;
  void DoExchange(absl::Span<const Transfer> transfers, Stream stream) override;
  void DoBarrier(Stream stream) override;
  absl::StatusOr<std::unique_ptr<Communicator>> DoSplit(
      const std::string& name,
      absl::Span<const std::vector<int>> groups) override;
  void DoAbort(const absl::Status& why) override;
  absl::Status Poll() override;

 private:
  // Elements [begin, end).
  struct Range {
    int64_t begin, end;
    int64_t count() const { return end - begin; }
  };

  // The rank `distance` places on.
  int Next(int distance) const { return (rank() + distance) % size(); }

  // The tag of this collective's messages.
  uint64_t Slot() const {
    const Operation& o = current();
    return Hash({o.sequence, o.kind, static_cast<int64_t>(o.dtype),
                 static_cast<int64_t>(o.op), o.count, o.root});
  }

  // Waits for the messages under way.
  bool Wait() {
    const bool done = mesh_->Wait();
    if (!done) Lose(mesh_->error());
    return done;
  }

  // Fails when the watchdog has told why.
  void Lose(const absl::Status& lost) {
    absl::MutexLock lock(&mutex_);
    lost_ = lost;
    lost_since_ = absl::Now();
    mutex_.AwaitWithTimeout(absl::Condition(&aborted_), world_.timeout);
    if (!aborted_) Fail(lost_);
  }

  // This rank's range of all ranks' data, reduced, goes to `recv`; `Part(p)` is
  // rank p's range, of at most kPiece bytes.
  template <typename F>
  bool ReducePart(const void* send, const F& Part, void* recv, DType dtype,
                  ReduceOp op, uint64_t slot);

  const World world_;
  const std::string path_;
  std::unique_ptr<Mesh> mesh_;            // null if size() == 1
  std::vector<int64_t> sent_, received_;  // [size] transfers so far
  std::vector<char> others_;       // [size, kPiece] bytes; of others to reduce
  std::vector<const void*> from_;  // [size] what is reduced

  absl::Mutex mutex_;
  absl::Status lost_ ABSL_GUARDED_BY(mutex_);  // a connection, for the watchdog
  absl::Time lost_since_ ABSL_GUARDED_BY(mutex_);
  bool aborted_ ABSL_GUARDED_BY(mutex_) = false;
};

template <typename F>
bool GlooCommunicator::ReducePart(const void* send, const F& Part, void* recv,
                                  DType dtype, ReduceOp op, uint64_t slot) {
  others_.resize(size() * kPiece);
  from_.resize(size());
  const int64_t element = SizeOf(dtype);
  const Range own = Part(rank());
  for (int i = 1; i < size(); ++i) {
    const int from = Next(size() - i), to = Next(i);
    const Range part = Part(to);
    if (own.count() > 0)
      mesh_->Receive(from, slot, &others_[from * kPiece],
                     own.count() * element);
    if (part.count() > 0)
      mesh_->Send(to, slot, At(send, part.begin * element),
                  part.count() * element);
  }
  if (!Wait()) return false;
  for (int p = 0; p < size(); ++p)
    from_[p] =
        p == rank() ? At(send, own.begin * element) : &others_[p * kPiece];
  ReduceRange(from_, {&recv, 1}, 0, own.count(), dtype, op);
  return true;
}

// Piece by piece: a reduce-scatter, then an all-gather.
void GlooCommunicator::DoAllReduce(const void* send, void* recv, int64_t count,
                                   DType dtype, ReduceOp op, Stream) {
  const int64_t element = SizeOf(dtype);
  if (mesh_ == nullptr) return Copy(send, recv, count * element);
  const int64_t piece = kPiece / element;
  uint64_t slot = Slot();
  for (int64_t begin = 0; begin < count; begin += piece * size(), slot += 2) {
    const int64_t block = std::min(piece * size(), count - begin);
    const auto Part = [&](int p) {
      return Range{begin + block * p / size(),
                   begin + block * (p + 1) / size()};
    };
    const Range own = Part(rank());
    if (!ReducePart(send, Part, At(recv, own.begin * element), dtype, op, slot))
      return;
    for (int i = 1; i < size(); ++i) {
      const int from = Next(size() - i), to = Next(i);
      const Range part = Part(from);
      if (part.count() > 0)
        mesh_->Receive(from, slot + 1, At(recv, part.begin * element),
                       part.count() * element);
      if (own.count() > 0)
        mesh_->Send(to, slot + 1, At(recv, own.begin * element),
                    own.count() * element);
    }
    if (!Wait()) return;
  }
}

void GlooCommunicator::DoReduceScatter(const void* send, void* recv,
                                       int64_t count, DType dtype, ReduceOp op,
                                       Stream) {
  const int64_t element = SizeOf(dtype);
  if (mesh_ == nullptr) return Copy(send, recv, count * element);
  const int64_t piece = kPiece / element;
  uint64_t slot = Slot();
  for (int64_t begin = 0; begin < count; begin += piece, ++slot) {
    const int64_t end = std::min(begin + piece, count);
    const auto Part = [&](int p) {
      return Range{p * count + begin, p * count + end};
    };
    if (!ReducePart(send, Part, At(recv, begin * element), dtype, op, slot))
      return;
  }
}

void GlooCommunicator::DoAllGather(const void* send, void* recv, int64_t count,
                                   DType dtype, Stream) {
  const int64_t bytes = count * SizeOf(dtype);
  Copy(send, At(recv, rank() * bytes), bytes);
  if (mesh_ == nullptr || count == 0) return;
  const uint64_t slot = Slot();
  for (int i = 1; i < size(); ++i) {
    const int from = Next(size() - i);
    mesh_->Receive(from, slot, At(recv, from * bytes), bytes);
    mesh_->Send(Next(i), slot, send, bytes);
  }
  Wait();
}

// A binomial tree: in round i, the ranks less than 2^i after the root send to
// those 2^i further on.
void GlooCommunicator::DoBroadcast(void* data, int64_t count, DType dtype,
                                   int root, Stream) {
  if (mesh_ == nullptr || count == 0) return;
  const int64_t bytes = count * SizeOf(dtype);
  const uint64_t slot = Slot();
  const int place = Next(size() - root);  // after the root
  for (int step = 1; step < size(); step *= 2) {
    if (place < step && place + step < size()) {
      mesh_->Send(Next(step), slot, data, bytes);
    } else if (step <= place && place < 2 * step) {
      mesh_->Receive(Next(size() - step), slot, data, bytes);
      if (!Wait()) return;
    }
  }
  Wait();
}

void GlooCommunicator::DoAllToAll(const void* send,
                                  absl::Span<const int64_t> send_counts,
                                  void* recv,
                                  absl::Span<const int64_t> recv_counts,
                                  DType dtype, Stream) {
  const int64_t element = SizeOf(dtype);
  const uint64_t slot = mesh_ == nullptr ? 0 : Slot();
  int64_t send_begin = 0, recv_begin = 0;
  for (int p = 0; p < size(); ++p) {
    const void* out = At(send, send_begin * element);
    void* in = At(recv, recv_begin * element);
    if (p == rank()) {
      Copy(out, in, recv_counts[p] * element);
    } else {
      if (recv_counts[p] > 0)
        mesh_->Receive(p, Hash({static_cast<int64_t>(slot), recv_counts[p]}),
                       in, recv_counts[p] * element);
      if (send_counts[p] > 0)
        mesh_->Send(p, Hash({static_cast<int64_t>(slot), send_counts[p]}), out,
                    send_counts[p] * element);
    }
    send_begin += send_counts[p];
    recv_begin += recv_counts[p];
  }
  if (mesh_ != nullptr) Wait();
}

void GlooCommunicator::DoExchange(absl::Span<const Transfer> transfers,
                                  Stream) {
  size_t own = 0;  // of those to itself
  for (const Transfer& t : transfers) {
    const bool send = t.kind == Transfer::kSend;
    if (t.peer == rank()) {
      if (send) continue;
      while (transfers[own].kind != Transfer::kSend ||
             transfers[own].peer != rank())
        ++own;
      const Transfer& sent = transfers[own++];
      CHECK(sent.count == t.count && sent.dtype == t.dtype)
          << "exchange in group " << name() << ": the rank sends itself "
          << sent.count << " " << Name(sent.dtype) << " but receives "
          << t.count << " " << Name(t.dtype);
      std::memcpy(t.data, sent.data, t.count * SizeOf(t.dtype));
      continue;
    }
    int64_t& place = send ? sent_[t.peer] : received_[t.peer];
    const uint64_t slot = Hash({place++, Operation::kExchange,
                                static_cast<int64_t>(t.dtype), t.count});
    const int64_t bytes = t.count * SizeOf(t.dtype);
    if (send) {
      mesh_->Send(t.peer, slot, t.data, bytes);
    } else {
      mesh_->Receive(t.peer, slot, t.data, bytes);
    }
  }
  if (mesh_ != nullptr) Wait();
}

// In round i, every rank tells the one 2^i further on. Source: Hensgen, Finkel
// and Manber 1988, "Two algorithms for barrier synchronization".
void GlooCommunicator::DoBarrier(Stream) {
  if (mesh_ == nullptr) return;
  const uint64_t slot = Slot();
  for (int step = 1; step < size(); step *= 2) {
    mesh_->Receive(Next(size() - step), slot, nullptr, 0);
    mesh_->Send(Next(step), slot, nullptr, 0);
    if (!Wait()) return;
  }
}

// Only the ranks of one group meet; groups of another split meet nobody.
absl::StatusOr<std::unique_ptr<Communicator>> GlooCommunicator::DoSplit(
    const std::string& name, absl::Span<const std::vector<int>> groups) {
  for (const std::vector<int>& group : groups) {
    const auto own = std::find(group.begin(), group.end(), rank());
    if (own == group.end()) continue;
    std::vector<int> members_of_group;
    for (const int r : group) members_of_group.push_back(members()[r]);
    std::string path =
        absl::StrCat(path_, "/", current().sequence, ":", name, "[",
                     absl::StrJoin(members_of_group, ","), "]");
    auto part = std::make_unique<GlooCommunicator>(
        world_, std::move(path), name, std::move(members_of_group),
        own - group.begin());
    if (const absl::Status connected = part->Connect(); !connected.ok()) {
      Lose(connected);
      return Health();
    }
    return part;
  }
  return nullptr;
}

void GlooCommunicator::DoAbort(const absl::Status&) {
  if (mesh_ != nullptr) mesh_->Abort();
  absl::MutexLock lock(&mutex_);
  aborted_ = true;
}

// A rank that ended is told of by the store a little later, and by its name.
absl::Status GlooCommunicator::Poll() {
  absl::MutexLock lock(&mutex_);
  if (lost_.ok() || absl::Now() - lost_since_ <
                        std::min(world_.timeout / 8, absl::Seconds(1)))
    return absl::OkStatus();
  return absl::Status(
      lost_.code(),
      absl::StrCat("rank ", members()[rank()], ": ", current().ToString(),
                   " in group ", name(), ": ", lost_.message()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> ConnectGloo(
    const Job& job, Store& store, const GlooOptions& options) {
  MIMO_ASSIGN_OR_RETURN(auto device, ListenTowards(job.host));
  std::vector<int> members(job.world_size);
  std::iota(members.begin(), members.end(), 0);
  std::shared_ptr<FailureBoard> board = NewStoreBoard(store, job.rank);
  auto world = std::make_unique<GlooCommunicator>(
      GlooCommunicator::World{store, board, std::move(device), options.timeout},
      "gloo", "world", std::move(members), job.rank);
  MIMO_RETURN_IF_ERROR(world->Connect());
  world->WatchWith(
      std::make_shared<Watchdog>(job.rank, std::move(board), options.timeout));
  return world;
}

}  // namespace mimo
