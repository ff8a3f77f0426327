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
// may come from any thread.
#ifndef MIMO_COMM_BASE_COMMUNICATOR_H_
#define MIMO_COMM_BASE_COMMUNICATOR_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "comm/base/operation.h"
#include "kernels/base/dtype.h"
#include "kernels/base/stream.h"

namespace mimo {

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
  virtual ~Communicator() = default;
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
  // send_counts[p] and recv_counts[p].
  void AllToAll(const void* send, void* recv, int64_t count, DType dtype,
                Stream stream);
  void AllToAll(const void* send, absl::Span<const int64_t> send_counts,
                void* recv, absl::Span<const int64_t> recv_counts, DType dtype,
                Stream stream);

  void Send(const void* data, int64_t count, DType dtype, int peer,
            Stream stream);
  void Recv(void* data, int64_t count, DType dtype, int peer, Stream stream);
  // All transfers of a batch as one launch: none waits for another of the
  // batch, so two ranks may send to each other in it.
  void Exchange(absl::Span<const Transfer> transfers, Stream stream);

  // Returns when every rank has entered it and this rank's earlier work on
  // `stream` is done.
  void Barrier(Stream stream);

  // Communicators of disjoint groups of this one's ranks, made by one call of
  // all its ranks (also of ranks in none of the groups, which get null).
  // `name` is for messages.
  absl::StatusOr<std::unique_ptr<Communicator>> Split(
      const std::string& name, absl::Span<const std::vector<int>> groups);

  // OK, or why this communicator failed: the operation, its sequence number,
  // the group's name and members, and who is missing or differs.
  absl::Status Health() const;
  // Fails the communicator; a call that waits in another thread returns. Only
  // the first reason counts.
  void Abort(absl::Status why);
  // The last 64 operations, oldest first.
  std::vector<Operation> LastOperations() const;
};

}  // namespace mimo

#endif  // MIMO_COMM_BASE_COMMUNICATOR_H_
