// The communicator of one thread among those of an InprocGroup.
#ifndef MIMO_COMM_INPROC_INPROC_COMMUNICATOR_H_
#define MIMO_COMM_INPROC_INPROC_COMMUNICATOR_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "comm/base/communicator.h"
#include "comm/inproc/group.h"

namespace mimo {

// One rank's places in a world and the groups split from it. It leaves all of
// them at once, with the last of its communicators: a rank that fails destroys
// one after the other, and has told why by the end.
struct InprocPresence {
  ~InprocPresence() {
    for (const auto& [group, rank] : places) group->Leave(rank);
  }
  std::vector<std::pair<std::shared_ptr<InprocGroup>, int>> places;
};

class InprocCommunicator final : public Communicator {
 public:
  InprocCommunicator(std::shared_ptr<InprocGroup> group, int rank,
                     std::shared_ptr<InprocPresence> presence);
  ~InprocCommunicator() override;

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

 private:
  // The batch's next transfer to or from one peer.
  struct Cursor {
    int send, recv;  // places in the batch; its size when there are no more
    bool posted;     // whether the send lies in the channel
  };

  // Publishes `slot`, waits for the others, and, if all call the same, works on
  // what they published.
  void Collective(InprocGroup::Slot slot, absl::FunctionRef<void()> work);
  const InprocGroup::Slot& slot(int rank) const { return group_->slots[rank]; }

  // Moves what can be moved between this rank and `peer`; whether anything was.
  bool Progress(absl::Span<const Transfer> transfers, int peer);
  // Takes back what no receiver has begun to read.
  void Withdraw();

  const std::shared_ptr<InprocGroup> group_;
  const std::shared_ptr<InprocPresence> presence_;
  std::vector<const void*> from_;  // [size]
  std::vector<void*> to_;          // [size]
  std::vector<Cursor> cursors_;    // [size]
};

}  // namespace mimo

#endif  // MIMO_COMM_INPROC_INPROC_COMMUNICATOR_H_
