// Communicator: collectives and transfers among the ranks of one group, over
// raw buffers.
//
// Contract. Every rank of the group makes the same calls in the same order;
// transfers need only the two ranks they join. Calls enqueue on `stream` and
// return; on the CPU, work runs at once in the caller, so a call returns when
// it is done or the communicator has failed. Counts are in elements and may be
// 0. Buffers are on the stream's device and stay until the work is done.
// float32, float64, bfloat16, float16, int32, int64, uint8. Sums of bfloat16
// and float16 are taken in float32.
//
// Failure. A communicator that has failed (a rank ended, hung, or made another
// call; Abort) stays failed: later calls return at once and touch nothing,
// results of the failed call are not to be used, and Health says why. Ask
// Health before a result counts, as the trainer does once a step.
//
// One thread at a time calls a communicator; Abort, Health and LastOperations
// may come from any thread. No call here takes a lock or allocates on its way,
// but to fail.
#ifndef MIMO_COMM_BASE_COMMUNICATOR_H_
#define MIMO_COMM_BASE_COMMUNICATOR_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "comm/base/operation.h"
#include "kernels/base/dtype.h"
#include "kernels/base/stream.h"

namespace mimo {

class Watchdog;

// One transfer of a batch. Between two ranks, sends meet receives in order.
struct Transfer {
  enum Kind : uint8_t { kSend, kRecv } kind;
  void* data;  // read by a send, written by a receive
  int64_t count;
  DType dtype;
  int peer;  // a rank of the group, not the caller's own
};

class Communicator {
 public:
  // The group of the world's ranks `members`, of which this process or thread
  // is members[rank].
  Communicator(std::string name, std::vector<int> members, int rank);
  virtual ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  const std::string& name() const { return name_; }  // "language/dp-cp"
  int rank() const { return rank_; }
  int size() const { return static_cast<int>(members_.size()); }
  absl::Span<const int> members() const { return members_; }

  // recv[i] = op over ranks of send[i]. In place if send == recv.
  void AllReduce(const void* send, void* recv, int64_t count, DType dtype,
                 ReduceOp op, Stream stream);
  // recv = send of rank 0 .. size-1, concatenated; count = elements of one
  // rank. In place if send == recv + rank * count.
  void AllGather(const void* send, void* recv, int64_t count, DType dtype,
                 Stream stream);
  // recv[i] = op over ranks of send[rank * count + i]; count = elements of one
  // rank. In place if recv == send + rank * count.
  void ReduceScatter(const void* send, void* recv, int64_t count, DType dtype,
                     ReduceOp op, Stream stream);
  // data of `root` to all.
  void Broadcast(void* data, int64_t count, DType dtype, int root,
                 Stream stream);
  // Part p of `send` goes to rank p, where it becomes part `rank` of `recv`.
  // Parts lie one behind another: all of `count` elements, or of
  // send_counts[p] and recv_counts[p]. Never in place.
  void AllToAll(const void* send, void* recv, int64_t count, DType dtype,
                Stream stream);
  void AllToAll(const void* send, absl::Span<const int64_t> send_counts,
                void* recv, absl::Span<const int64_t> recv_counts, DType dtype,
                Stream stream);

  void Send(const void* data, int64_t count, DType dtype, int peer,
            Stream stream);
  void Recv(void* data, int64_t count, DType dtype, int peer, Stream stream);
  // All transfers of a batch as one launch: none waits for another of the
  // batch, so two ranks may send to each other in it, and one to itself: what
  // it receives from itself is what it sends itself, in order.
  void Exchange(absl::Span<const Transfer> transfers, Stream stream);

  // Returns when every rank has entered it and this rank's earlier work on
  // `stream` is done.
  void Barrier(Stream stream);

  // Communicators of disjoint groups of this one's ranks, made by one call of
  // all its ranks with the same groups (also of ranks in none of them, which
  // get null). groups[g][i] is rank i of group g. `name` is for messages. The
  // watchdog of this one watches them too.
  absl::StatusOr<std::unique_ptr<Communicator>> Split(
      const std::string& name, absl::Span<const std::vector<int>> groups);

  // OK, or why this communicator failed: the operation, its sequence number,
  // the group's name and members, and who is missing or differs.
  absl::Status Health() const;
  // Fails the communicator; a call that waits in another thread returns. Only
  // the first reason counts.
  void Abort(absl::Status why);
  // The last kKept operations, oldest first.
  std::vector<Operation> LastOperations() const;
  static constexpr int kKept = 64;

  // From now on `watchdog` watches this communicator. Once, before any call.
  void WatchWith(std::shared_ptr<Watchdog> watchdog);

 protected:
  // The operations, their arguments checked. Those on the CPU return when all
  // is done; when something fails they call Fail and return. Asynchronous ones
  // override Completed.
  virtual void DoAllReduce(const void* send, void* recv, int64_t count,
                           DType dtype, ReduceOp op, Stream stream) = 0;
  virtual void DoAllGather(const void* send, void* recv, int64_t count,
                           DType dtype, Stream stream) = 0;
  virtual void DoReduceScatter(const void* send, void* recv, int64_t count,
                               DType dtype, ReduceOp op, Stream stream) = 0;
  virtual void DoBroadcast(void* data, int64_t count, DType dtype, int root,
                           Stream stream) = 0;
  virtual void DoAllToAll(const void* send,
                          absl::Span<const int64_t> send_counts, void* recv,
                          absl::Span<const int64_t> recv_counts, DType dtype,
                          Stream stream) = 0;
  virtual void DoExchange(absl::Span<const Transfer> transfers,
                          Stream stream) = 0;
  virtual void DoBarrier(Stream stream) = 0;
  // An error fails this communicator.
  virtual absl::StatusOr<std::unique_ptr<Communicator>> DoSplit(
      const std::string& name, absl::Span<const std::vector<int>> groups) = 0;
  // Wakes a call that waits. Once, from any thread, after failed() is true.
  virtual void DoAbort(const absl::Status& why) = 0;

  // How many of the begun() operations are done; from any thread. By default
  // those that have returned.
  virtual int64_t Completed() const;
  // An error that this communicator has found by itself since (NCCL's
  // asynchronous ones); from the watchdog's thread.
  virtual absl::Status Poll() { return absl::OkStatus(); }

  // Each implementation's destructor begins with this: afterwards no other
  // thread calls its virtual functions.
  void Retire();

  // Makes Health return `why`, unless it fails already.
  void Fail(absl::Status why);
  bool failed() const { return failed_.load(std::memory_order_acquire); }
  // The operation under way, for the thread that made it.
  const Operation& current() const { return current_; }
  // Operations begun so far, with the one under way.
  int64_t begun() const { return begun_.load(std::memory_order_acquire); }

 private:
  friend class Watchdog;
  class Call;

  // An operation as other threads may read it while it is overwritten: `turn`
  // is odd meanwhile, then 2 * (number of operations so far).
  struct Record {
    std::atomic<int64_t> turn{0}, sequence{0}, count{0}, start{0};
    std::atomic<uint64_t> what{0};  // root, op, dtype, kind
  };

  void Write(const Operation& operation);
  bool Read(int64_t index, Operation* operation) const;

  const std::string name_;
  const std::vector<int> members_;
  const int rank_;
  std::vector<int64_t> even_counts_;  // [size], of an even all-to-all

  // Of the calling thread.
  Operation current_;
  int64_t collectives_ = 0, exchanges_ = 0;

  std::array<Record, kKept> records_;
  std::atomic<int64_t> begun_{0}, returned_{0};

  std::atomic<bool> failed_{false}, aborted_{false};
  mutable absl::Mutex mutex_;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);

  std::shared_ptr<Watchdog> watchdog_;
};

}  // namespace mimo

#endif  // MIMO_COMM_BASE_COMMUNICATOR_H_
