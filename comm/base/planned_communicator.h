// PlannedCommunicator: a rank of a group on paper. It has a size and a rank,
// for what is only counted; every operation is fatal.
#ifndef MIMO_COMM_BASE_PLANNED_COMMUNICATOR_H_
#define MIMO_COMM_BASE_PLANNED_COMMUNICATOR_H_

#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "absl/log/log.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/base/communicator.h"

namespace mimo {

class PlannedCommunicator : public Communicator {
 public:
  using Communicator::Communicator;
  // Of the ranks 0 to size - 1.
  PlannedCommunicator(int rank, int size)
      : Communicator("planned", Iota(size), rank) {}
  ~PlannedCommunicator() override { Retire(); }

 protected:
  void DoAllReduce(const void*, void*, int64_t, DType, ReduceOp,
                   Stream) override {
    Refuse();
  }
  void DoAllGather(const void*, void*, int64_t, DType, Stream) override {
    Refuse();
  }
  void DoReduceScatter(const void*, void*, int64_t, DType, ReduceOp,
                       Stream) override {
    Refuse();
  }
  void DoBroadcast(void*, int64_t, DType, int, Stream) override { Refuse(); }
  void DoAllToAll(const void*, absl::Span<const int64_t>, void*,
                  absl::Span<const int64_t>, DType, Stream) override {
    Refuse();
  }
  void DoExchange(absl::Span<const Transfer>, Stream) override { Refuse(); }
  void DoBarrier(Stream) override { Refuse(); }
  void DoAbort(const absl::Status&) override {}
  absl::StatusOr<std::unique_ptr<Communicator>> DoSplit(
      const std::string&, absl::Span<const std::vector<int>>) override {
    Refuse();
  }

 private:
  static std::vector<int> Iota(int size) {
    std::vector<int> ranks(size);
    std::iota(ranks.begin(), ranks.end(), 0);
    return ranks;
  }
  [[noreturn]] void Refuse() const {
    LOG(FATAL) << name() << ": an operation of a group that is only planned";
  }
};

}  // namespace mimo

#endif  // MIMO_COMM_BASE_PLANNED_COMMUNICATOR_H_
