#include "comm/base/communicator.h"

#include <algorithm>
#include <utility>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "comm/base/watchdog.h"

namespace mimo {
namespace {

void CheckBuffer(const Communicator& communicator, const char* operation,
                 const void* buffer, int64_t count) {
  CHECK_GE(count, 0) << operation << " in group " << communicator.name()
                     << ": found a negative count, wanted at least 0";
  CHECK(buffer != nullptr || count == 0)
      << operation << " in group " << communicator.name() << ": found " << count
      << " elements at a null pointer, wanted a buffer";
}

void CheckRank(const Communicator& communicator, const char* operation,
               int rank) {
  CHECK(0 <= rank && rank < communicator.size())
      << operation << " in group " << communicator.name() << ": found rank "
      << rank << ", wanted 0 to " << communicator.size() - 1;
}

int64_t Sum(absl::Span<const int64_t> counts) {
  int64_t sum = 0;
  for (int64_t count : counts) sum += count;
  return sum;
}

}  // namespace

// From the record of an operation to its end; false if it is not to be made.
class Communicator::Call {
 public:
  Call(Communicator& communicator, Operation operation)
      : communicator_(communicator), made_(!communicator.failed()) {
    if (!made_) return;
    operation.sequence = operation.kind == Operation::kExchange
                             ? communicator.exchanges_++
                             : communicator.collectives_++;
    operation.start = absl::Now();
    communicator.current_ = operation;
    communicator.Write(operation);
  }
  // One that failed stays unfinished in the record.
  ~Call() {
    if (!made_ || communicator_.failed()) return;
    communicator_.returned_.store(communicator_.begun(),
                                  std::memory_order_release);
  }
  explicit operator bool() const { return made_; }

 private:
  Communicator& communicator_;
  const bool made_;
};

Communicator::Communicator(std::string name, std::vector<int> members, int rank)
    : name_(std::move(name)),
      members_(std::move(members)),
      rank_(rank),
      even_counts_(members_.size()) {
  CheckRank(*this, "Communicator", rank);
}

Communicator::~Communicator() {
  CHECK(watchdog_ == nullptr)
      << "group " << name_ << ": its destructor has not called Retire";
}

void Communicator::AllReduce(const void* send, void* recv, int64_t count,
                             DType dtype, ReduceOp op, Stream stream) {
  CheckBuffer(*this, "all_reduce", send, count);
  CheckBuffer(*this, "all_reduce", recv, count);
  if (Call call(*this, {.kind = Operation::kAllReduce,
                        .dtype = dtype,
                        .op = op,
                        .count = count});
      call)
    DoAllReduce(send, recv, count, dtype, op, stream);
}

void Communicator::AllGather(const void* send, void* recv, int64_t count,
                             DType dtype, Stream stream) {
  CheckBuffer(*this, "all_gather", send, count);
  CheckBuffer(*this, "all_gather", recv, count);
  if (Call call(
          *this,
          {.kind = Operation::kAllGather, .dtype = dtype, .count = count});
      call)
    DoAllGather(send, recv, count, dtype, stream);
}

void Communicator::ReduceScatter(const void* send, void* recv, int64_t count,
                                 DType dtype, ReduceOp op, Stream stream) {
  CheckBuffer(*this, "reduce_scatter", send, count);
  CheckBuffer(*this, "reduce_scatter", recv, count);
  if (Call call(*this, {.kind = Operation::kReduceScatter,
                        .dtype = dtype,
                        .op = op,
                        .count = count});
      call)
    DoReduceScatter(send, recv, count, dtype, op, stream);
}

void Communicator::Broadcast(void* data, int64_t count, DType dtype, int root,
                             Stream stream) {
  CheckBuffer(*this, "broadcast", data, count);
  CheckRank(*this, "broadcast", root);
  if (Call call(*this, {.kind = Operation::kBroadcast,
                        .dtype = dtype,
                        .count = count,
                        .root = root});
      call)
    DoBroadcast(data, count, dtype, root, stream);
}

void Communicator::AllToAll(const void* send, void* recv, int64_t count,
                            DType dtype, Stream stream) {
  CheckBuffer(*this, "all_to_all", send, count);
  CheckBuffer(*this, "all_to_all", recv, count);
  CHECK(send != recv || count == 0)
      << "all_to_all in group " << name_
      << ": found send == recv, wanted two buffers";
  std::fill(even_counts_.begin(), even_counts_.end(), count);
  if (Call call(*this,
                {.kind = Operation::kAllToAll, .dtype = dtype, .count = count});
      call)
    DoAllToAll(send, even_counts_, recv, even_counts_, dtype, stream);
}

void Communicator::AllToAll(const void* send,
                            absl::Span<const int64_t> send_counts, void* recv,
                            absl::Span<const int64_t> recv_counts, DType dtype,
                            Stream stream) {
  for (auto counts : {send_counts, recv_counts}) {
    CHECK_EQ(counts.size(), members_.size())
        << "all_to_all in group " << name_ << ": counts found and wanted";
    for (int64_t count : counts)
      CHECK_GE(count, 0) << "all_to_all in group " << name_
                         << ": found a negative count, wanted at least 0";
  }
  CheckBuffer(*this, "all_to_all", send, Sum(send_counts));
  CheckBuffer(*this, "all_to_all", recv, Sum(recv_counts));
  CHECK(send != recv || send == nullptr)
      << "all_to_all in group " << name_
      << ": found send == recv, wanted two buffers";
  if (Call call(*this, {.kind = Operation::kAllToAll,
                        .dtype = dtype,
                        .count = Operation::kUneven});
      call)
    DoAllToAll(send, send_counts, recv, recv_counts, dtype, stream);
}

void Communicator::Send(const void* data, int64_t count, DType dtype, int peer,
                        Stream stream) {
  const Transfer transfer = {Transfer::kSend, const_cast<void*>(data), count,
                             dtype, peer};
  Exchange({&transfer, 1}, stream);
}

void Communicator::Recv(void* data, int64_t count, DType dtype, int peer,
                        Stream stream) {
  const Transfer transfer = {Transfer::kRecv, data, count, dtype, peer};
  Exchange({&transfer, 1}, stream);
}

void Communicator::Exchange(absl::Span<const Transfer> transfers,
                            Stream stream) {
  int left = 0;  // of what the rank sends itself
  for (const Transfer& transfer : transfers) {
    CheckBuffer(*this, "exchange", transfer.data, transfer.count);
    CheckRank(*this, "exchange", transfer.peer);
    if (transfer.peer == rank_)
      left += transfer.kind == Transfer::kSend ? 1 : -1;
  }
  CHECK_EQ(left, 0) << "exchange in group " << name_
                    << ": transfers of the rank to itself and from itself, "
                       "wanted as many";
  if (transfers.empty()) return;
  if (Call call(*this, {.kind = Operation::kExchange,
                        .dtype = transfers[0].dtype,
                        .count = static_cast<int64_t>(transfers.size()),
                        .root = transfers[0].peer});
      call)
    DoExchange(transfers, stream);
}

void Communicator::Barrier(Stream stream) {
  if (Call call(*this, {.kind = Operation::kBarrier}); call) DoBarrier(stream);
}

absl::StatusOr<std::unique_ptr<Communicator>> Communicator::Split(
    const std::string& name, absl::Span<const std::vector<int>> groups) {
  std::vector<bool> taken(members_.size());
  for (const std::vector<int>& group : groups) {
    CHECK(!group.empty()) << "split of group " << name_ << " into " << name
                          << ": found a group of no ranks, wanted some";
    for (int rank : group) {
      CheckRank(*this, "split", rank);
      CHECK(!taken[rank]) << "split of group " << name_ << " into " << name
                          << ": found rank " << rank << " twice, wanted once";
      taken[rank] = true;
    }
  }
  Call call(*this, {.kind = Operation::kSplit,
                    .count = static_cast<int64_t>(groups.size())});
  if (!call) return Health();
  absl::StatusOr<std::unique_ptr<Communicator>> part = DoSplit(name, groups);
  if (!part.ok()) Fail(part.status());
  if (failed()) return Health();
  if (*part != nullptr && watchdog_ != nullptr) (*part)->WatchWith(watchdog_);
  return part;
}

absl::Status Communicator::Health() const {
  if (!failed()) return absl::OkStatus();
  absl::MutexLock lock(&mutex_);
  return status_;
}

void Communicator::Fail(absl::Status why) {
  CHECK(!why.ok()) << "group " << name_ << ": found a failure with status OK";
  absl::MutexLock lock(&mutex_);
  if (!status_.ok()) return;
  status_ = std::move(why);
  failed_.store(true, std::memory_order_release);
}

void Communicator::Abort(absl::Status why) {
  Fail(std::move(why));
  if (!aborted_.exchange(true)) DoAbort(Health());
}

void Communicator::WatchWith(std::shared_ptr<Watchdog> watchdog) {
  CHECK(watchdog_ == nullptr) << "group " << name_ << ": watched twice";
  watchdog_ = std::move(watchdog);
  watchdog_->Add(this);
}

void Communicator::Retire() {
  if (watchdog_ == nullptr) return;
  watchdog_->Remove(this);
  watchdog_ = nullptr;
}

int64_t Communicator::Completed() const {
  return returned_.load(std::memory_order_acquire);
}

// A sequence lock of atomics alone: each release store of a field publishes
// the odd turn before it, and each acquire load precedes the second look at
// `turn`, so a torn read is seen.
void Communicator::Write(const Operation& operation) {
  const int64_t index = begun_.load(std::memory_order_relaxed);
  Record& record = records_[index % kKept];
  record.turn.store(2 * index + 1, std::memory_order_relaxed);
  record.sequence.store(operation.sequence, std::memory_order_release);
  record.count.store(operation.count, std::memory_order_release);
  record.start.store(absl::ToUnixNanos(operation.start),
                     std::memory_order_release);
  record.what.store(uint64_t{static_cast<uint32_t>(operation.root)} << 32 |
                        uint64_t{static_cast<uint8_t>(operation.op)} << 16 |
                        uint64_t{static_cast<uint8_t>(operation.dtype)} << 8 |
                        operation.kind,
                    std::memory_order_release);
  record.turn.store(2 * index + 2, std::memory_order_release);
  begun_.store(index + 1, std::memory_order_release);
}

bool Communicator::Read(int64_t index, Operation* operation) const {
  const Record& record = records_[index % kKept];
  if (record.turn.load(std::memory_order_acquire) != 2 * index + 2)
    return false;
  operation->sequence = record.sequence.load(std::memory_order_acquire);
  operation->count = record.count.load(std::memory_order_acquire);
  operation->start =
      absl::FromUnixNanos(record.start.load(std::memory_order_acquire));
  const uint64_t what = record.what.load(std::memory_order_acquire);
  operation->root = static_cast<int32_t>(what >> 32);
  operation->op = static_cast<ReduceOp>(what >> 16 & 0xff);
  operation->dtype = static_cast<DType>(what >> 8 & 0xff);
  operation->kind = static_cast<Operation::Kind>(what & 0xff);
  return record.turn.load(std::memory_order_relaxed) == 2 * index + 2;
}

std::vector<Operation> Communicator::LastOperations() const {
  const int64_t completed = Completed();
  const int64_t end = begun();
  std::vector<Operation> operations;
  operations.reserve(kKept);
  for (int64_t i = std::max<int64_t>(0, end - kKept); i < end; ++i) {
    Operation operation;
    if (!Read(i, &operation)) continue;  // overwritten meanwhile
    operation.done = i < completed;
    operations.push_back(operation);
  }
  return operations;
}

}  // namespace mimo
