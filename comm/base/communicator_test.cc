// What every communicator does by itself: arguments, records, failed state.
#include "comm/base/communicator.h"

#include <atomic>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace mimo {
namespace {

using Groups = std::vector<std::vector<int>>;

// Does nothing but count; `fail_next` makes the next operation fail.
class CountingCommunicator : public Communicator {
 public:
  CountingCommunicator() : Communicator("two", {4, 6}, 0) {}
  ~CountingCommunicator() override { Retire(); }

  int made = 0, aborted = 0;
  bool fail_next = false;
  Operation seen;

 protected:
  void DoAllReduce(const void*, void*, int64_t, DType, ReduceOp,
                   Stream) override {
    Make();
  }
  void DoAllGather(const void*, void*, int64_t, DType, Stream) override {
    Make();
  }
  void DoReduceScatter(const void*, void*, int64_t, DType, ReduceOp,
                       Stream) override {
    Make();
  }
  void DoBroadcast(void*, int64_t, DType, int, Stream) override { Make(); }
  void DoAllToAll(const void*, absl::Span<const int64_t> send_counts, void*,
                  absl::Span<const int64_t> recv_counts, DType,
                  Stream) override {
    EXPECT_EQ(send_counts.size(), 2);
    EXPECT_EQ(recv_counts.size(), 2);
    Make();
  }
  void DoExchange(absl::Span<const Transfer>, Stream) override { Make(); }
  void DoBarrier(Stream) override { Make(); }
  absl::StatusOr<std::unique_ptr<Communicator>> DoSplit(
      const std::string&, absl::Span<const std::vector<int>>) override {
    Make();
    return nullptr;
  }
  void DoAbort(const absl::Status&) override { ++aborted; }

 private:
  void Make() {
    ++made;
    seen = current();
    if (std::exchange(fail_next, false))
      Fail(absl::UnavailableError("the cable is out"));
  }
};

TEST(Communicator, RecordsEachOperation) {
  CountingCommunicator communicator;
  float x[4] = {}, y[4] = {};
  const int64_t counts[] = {1, 2};
  communicator.AllReduce(x, y, 3, DType::kFloat32, ReduceOp::kMax, {});
  communicator.AllGather(x, y, 2, DType::kFloat32, {});
  communicator.Send(x, 4, DType::kFloat32, 1, {});
  communicator.ReduceScatter(x, y, 2, DType::kBFloat16, ReduceOp::kSum, {});
  communicator.Broadcast(x, 4, DType::kInt32, 1, {});
  communicator.AllToAll(x, y, 1, DType::kInt32, {});
  communicator.AllToAll(x, counts, y, counts, DType::kUInt8, {});
  communicator.Recv(x, 0, DType::kInt64, 1, {});
  communicator.Barrier({});
  EXPECT_TRUE(communicator.Split("halves", Groups{{0}, {1}}).ok());
  communicator.Exchange({}, {});  // nothing to do: no operation
  std::vector<std::string> found;
  for (const Operation& operation : communicator.LastOperations()) {
    EXPECT_TRUE(operation.done);
    found.push_back(operation.ToString());
  }
  EXPECT_EQ(found,
            (std::vector<std::string>{
                "all_reduce(max, 3 float32), sequence 0",
                "all_gather(2 float32), sequence 1",
                "exchange(1 transfers, first peer 1), sequence 0",
                "reduce_scatter(sum, 2 bfloat16), sequence 2",
                "broadcast(4 int32, root 1), sequence 3",
                "all_to_all(1 int32), sequence 4",
                "all_to_all(uneven uint8), sequence 5",
                "exchange(1 transfers, first peer 1), sequence 1",
                "barrier(), sequence 6", "split(2 groups), sequence 7"}));
  EXPECT_EQ(communicator.made, 10);
}

TEST(Communicator, KeepsTheLast64) {
  CountingCommunicator communicator;
  for (int i = 0; i < 1000; ++i)
    communicator.Broadcast(&i, 1, DType::kInt32, 0, {});
  const std::vector<Operation> last = communicator.LastOperations();
  ASSERT_EQ(last.size(), 64);
  for (int i = 0; i < 64; ++i) EXPECT_EQ(last[i].sequence, 936 + i);
  EXPECT_LE(last[0].start, last[63].start);
}

// Of each record that a reader gets while it is overwritten, all fields are of
// one operation.
TEST(Communicator, RecordsAreReadWhole) {
  CountingCommunicator communicator;
  std::atomic<bool> stop = false;
  std::thread reader([&] {
    while (!stop) {
      for (const Operation& operation : communicator.LastOperations()) {
        ASSERT_EQ(operation.count, operation.sequence);
        ASSERT_EQ(operation.root, operation.sequence % 2);
        ASSERT_EQ(operation.dtype,
                  operation.root ? DType::kInt64 : DType::kUInt8);
      }
    }
  });
  char byte;
  for (int64_t i = 0; i < 20000; ++i)
    communicator.Broadcast(&byte, i, i % 2 ? DType::kInt64 : DType::kUInt8,
                           i % 2, {});
  stop = true;
  reader.join();
}

TEST(Communicator, AFailedOneTouchesNothingMore) {
  CountingCommunicator communicator;
  communicator.Barrier({});
  EXPECT_TRUE(communicator.Health().ok());
  communicator.fail_next = true;
  communicator.Barrier({});
  communicator.Barrier({});
  communicator.Abort(absl::AbortedError("a second reason"));
  communicator.Abort(absl::AbortedError("a third reason"));
  EXPECT_EQ(communicator.Health().message(), "the cable is out");
  EXPECT_EQ(communicator.Split("x", Groups{{0, 1}}).status().message(),
            "the cable is out");
  EXPECT_EQ(communicator.made, 2);
  EXPECT_EQ(communicator.aborted, 1);
  const std::vector<Operation> last = communicator.LastOperations();
  ASSERT_EQ(last.size(), 2);
  EXPECT_TRUE(last[0].done);
  EXPECT_FALSE(last[1].done);
}

TEST(CommunicatorDeathTest, WrongArguments) {
  CountingCommunicator communicator;
  float x[4];
  const int64_t one[] = {1}, negative[] = {1, -1}, two[] = {1, 1};
  EXPECT_DEATH(communicator.AllReduce(x, x, -1, DType::kFloat32, ReduceOp::kSum,
                                      Stream{}),
               "all_reduce in group two: found a negative count");
  EXPECT_DEATH(communicator.AllGather(nullptr, x, 1, DType::kFloat32, {}),
               "found 1 elements at a null pointer");
  EXPECT_DEATH(communicator.Broadcast(x, 1, DType::kFloat32, 2, {}),
               "broadcast in group two: found rank 2, wanted 0 to 1");
  EXPECT_DEATH(
      communicator.Send(x, 1, DType::kFloat32, 0, {}),
      "transfers of the rank to itself and from itself, wanted as many");
  EXPECT_DEATH(communicator.AllToAll(x, one, x + 2, two, DType::kFloat32, {}),
               "counts found and wanted");
  EXPECT_DEATH(
      communicator.AllToAll(x, negative, x + 2, two, DType::kFloat32, {}),
      "found a negative count");
  EXPECT_DEATH(communicator.AllToAll(x, x, 1, DType::kFloat32, {}),
               "found send == recv");
  EXPECT_DEATH(communicator.Split("x", Groups{{0, 1}, {1}}).IgnoreError(),
               "found rank 1 twice");
}

}  // namespace
}  // namespace mimo
