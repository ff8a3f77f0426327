// The suite finds each of these faults, on every rank.
#include "comm/testing/conformance.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "comm/inproc/inproc.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

enum class Fault {
  kNone,
  kResult,       // the last element's last bit, on one rank
  kBeside,       // a byte after the result
  kInput,        // the first byte of the input
  kUnfinished,   // the last element is not written
  kSumTooCoarse  // a sum rounded to 1/1024
};

// Passes each call on to another communicator and damages what comes back.
class FaultyCommunicator : public Communicator {
 public:
  FaultyCommunicator(Communicator* inner, Operation::Kind kind, Fault fault)
      : Communicator(inner->name(),
                     {inner->members().begin(), inner->members().end()},
                     inner->rank()),
        inner_(inner),
        kind_(kind),
        fault_(fault) {}

 protected:
  void DoAllReduce(const void* send, void* recv, int64_t count, DType dtype,
                   ReduceOp op, Stream stream) override {
    inner_->AllReduce(send, recv, count, dtype, op, stream);
    if (fault_ == Fault::kSumTooCoarse && op == ReduceOp::kSum &&
        dtype == DType::kFloat32)
      for (float* x = static_cast<float*>(recv); count > 0; --count, ++x)
        *x = static_cast<int>(*x * 1024) / 1024.0f;
    else
      Damage(send, recv, count * SizeOf(dtype));
  }
  void DoAllGather(const void* send, void* recv, int64_t count, DType dtype,
                   Stream stream) override {
    inner_->AllGather(send, recv, count, dtype, stream);
    Damage(send, recv, size() * count * SizeOf(dtype));
  }
  void DoReduceScatter(const void* send, void* recv, int64_t count, DType dtype,
                       ReduceOp op, Stream stream) override {
    inner_->ReduceScatter(send, recv, count, dtype, op, stream);
    Damage(send, recv, count * SizeOf(dtype));
  }
  void DoBroadcast(void* data, int64_t count, DType dtype, int root,
                   Stream stream) override {
    inner_->Broadcast(data, count, dtype, root, stream);
    Damage(data, data, count * SizeOf(dtype));
  }
  void DoAllToAll(const void* send, absl::Span<const int64_t> send_counts,
                  void* recv, absl::Span<const int64_t> recv_counts,
                  DType dtype, Stream stream) override {
    inner_->AllToAll(send, send_counts, recv, recv_counts, dtype, stream);
    int64_t count = 0;
    for (const int64_t part : recv_counts) count += part;
    Damage(send, recv, count * SizeOf(dtype));
  }
  void DoExchange(absl::Span<const Transfer> transfers,
                  Stream stream) override {
    inner_->Exchange(transfers, stream);
    for (const Transfer& transfer : transfers)
      if (transfer.kind == Transfer::kRecv && fault_ != Fault::kInput)
        Damage(nullptr, transfer.data, transfer.count * SizeOf(transfer.dtype));
  }
  void DoBarrier(Stream stream) override { inner_->Barrier(stream); }
  absl::StatusOr<std::unique_ptr<Communicator>> DoSplit(
      const std::string& name,
      absl::Span<const std::vector<int>> groups) override {
    auto part = inner_->Split(name, groups);
    if (!part.ok() || *part == nullptr) return part;
    parts_.push_back(*std::move(part));
    return std::make_unique<FaultyCommunicator>(parts_.back().get(), kind_,
                                                fault_);
  }
  void DoAbort(const absl::Status& why) override { inner_->Abort(why); }

 private:
  void Damage(const void* send, void* recv, int64_t bytes) {
    if (kind_ != current().kind || bytes == 0 || rank() != size() - 1 ||
        name() == "world")  // where the ranks agree on their verdict
      return;
    char* to = static_cast<char*>(recv);
    if (fault_ == Fault::kResult) to[bytes - 1] ^= 0x40;
    if (fault_ == Fault::kBeside) to[bytes] ^= 1;
    if (fault_ == Fault::kUnfinished) to[bytes - 1] = 0x7f;
    if (fault_ == Fault::kInput)
      *static_cast<char*>(const_cast<void*>(send)) ^= 1;
  }

  Communicator* const inner_;
  const Operation::Kind kind_;
  const Fault fault_;
  std::vector<std::unique_ptr<Communicator>> parts_;
};

// How many of 3 ranks say that something is wrong.
int Complaints(Operation::Kind kind, Fault fault, bool at_random) {
  int complaints = 0;
  for (const absl::Status& status : RunRanks(3, [&](Communicator& world) {
         FaultyCommunicator faulty(&world, kind, fault);
         return at_random ? CheckRandomOperations(faulty, Stream{}, 200, 1)
                          : CheckConformance(
                                faulty, Stream{},
                                {.group_sizes = {3},
                                 .dtypes = {DType::kFloat32, DType::kUInt8},
                                 .counts = {0, 17},
                                 .large_count = 5000});
       }))
    complaints += !status.ok();
  return complaints;
}

TEST(Conformance, FindsEachFaultOfEachOperation) {
  for (const bool at_random : {false, true}) {
    EXPECT_EQ(Complaints(Operation::kBarrier, Fault::kNone, at_random), 0);
    EXPECT_EQ(
        Complaints(Operation::kAllReduce, Fault::kSumTooCoarse, at_random), 3);
    for (const auto kind : {Operation::kAllReduce, Operation::kAllGather,
                            Operation::kReduceScatter, Operation::kBroadcast,
                            Operation::kAllToAll, Operation::kExchange})
      for (const Fault fault :
           {Fault::kResult, Fault::kBeside, Fault::kInput, Fault::kUnfinished})
        EXPECT_EQ(
            Complaints(kind, fault, at_random),
            kind == Operation::kExchange && fault == Fault::kInput ? 0 : 3)
            << kind << " " << static_cast<int>(fault);
  }
}

}  // namespace
}  // namespace mimo
