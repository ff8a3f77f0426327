// What of a column-split layer's backward runs beside its collectives: read off
// the graph that the backward is captured as.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <vector>

#include "comm/base/planned_communicator.h"
#include "gtest/gtest.h"
#include "kernels/base/cuda_check.h"
#include "kernels/base/device.h"
#include "mimo/autograd/ops/linear.h"

namespace mimo {
namespace {

// Rank 0 of two, each of whose collectives is a host function that does
// nothing: a node of its own kind in a graph.
class MarkingRank final : public PlannedCommunicator {
 public:
  MarkingRank() : PlannedCommunicator(/*rank=*/0, /*size=*/2) {}

 private:
  static void Mark(Stream stream) {
    MIMO_CUDA_CHECK(cudaLaunchHostFunc(
        RawStream(stream), [](void*) {}, nullptr));
  }
  void DoAllReduce(const void*, void*, int64_t, DType, ReduceOp,
                   Stream stream) override {
    Mark(stream);
  }
  void DoAllGather(const void*, void*, int64_t, DType, Stream stream) override {
    Mark(stream);
  }
  void DoReduceScatter(const void*, void*, int64_t, DType, ReduceOp,
                       Stream stream) override {
    Mark(stream);
  }
};

// The nodes of a graph by number, and which of them wait for which.
class Order {
 public:
  explicit Order(cudaGraph_t graph) {
    size_t count = 0, edges = 0;
    MIMO_CUDA_CHECK(cudaGraphGetNodes(graph, nullptr, &count));
    std::vector<cudaGraphNode_t> nodes(count);
    MIMO_CUDA_CHECK(cudaGraphGetNodes(graph, nodes.data(), &count));
    types_.resize(count);
    for (size_t i = 0; i < count; ++i)
      MIMO_CUDA_CHECK(cudaGraphNodeGetType(nodes[i], &types_[i]));
    MIMO_CUDA_CHECK(
        cudaGraphGetEdges(graph, nullptr, nullptr, nullptr, &edges));
    std::vector<cudaGraphNode_t> from(edges), to(edges);
    std::vector<cudaGraphEdgeData> data(edges);
    MIMO_CUDA_CHECK(
        cudaGraphGetEdges(graph, from.data(), to.data(), data.data(), &edges));
    before_.assign(count, std::vector<bool>(count));
    const auto at = [&](cudaGraphNode_t node) {
      return std::ranges::find(nodes, node) - nodes.begin();
    };
    for (size_t e = 0; e < edges; ++e) before_[at(from[e])][at(to[e])] = true;
    for (size_t k = 0; k < count; ++k)
      for (size_t i = 0; i < count; ++i)
        for (size_t j = 0; j < count; ++j)
          if (before_[i][k] && before_[k][j]) before_[i][j] = true;
  }

  bool Before(size_t a, size_t b) const { return before_[a][b]; }
  std::vector<size_t> OfType(cudaGraphNodeType wanted) const {
    std::vector<size_t> found;
    for (size_t i = 0; i < types_.size(); ++i)
      if (types_[i] == wanted) found.push_back(i);
    return found;
  }
  // The kernels that neither wait for a node nor keep it waiting.
  std::vector<size_t> Beside(size_t node) const {
    std::vector<size_t> found;
    for (size_t kernel : OfType(cudaGraphNodeTypeKernel))
      if (!Before(kernel, node) && !Before(node, kernel))
        found.push_back(kernel);
    return found;
  }

 private:
  std::vector<cudaGraphNodeType> types_;
  std::vector<std::vector<bool>> before_;  // [from][to]
};

constexpr int64_t kT = 256, kH = 128, kF = 64;

// The order of the backward's work.
Order BackwardOf(bool tokens) {
  const Stream compute = NewStream(Device::kCuda);
  Allocator allocator(compute);
  MarkingRank tp;
  Parameter weight;
  weight.data = Tensor(allocator, {kF, kH}, DType::kBFloat16);
  weight.main_grad = Tensor(allocator, {kF, kH}, DType::kFloat32);
  weight.data.Zero();
  const Tensor x(allocator, {tokens ? kT / tp.size() : kT, kH},
                 DType::kBFloat16);
  const Tensor dy(allocator, {kT, kF}, DType::kBFloat16);
  cudaGraph_t graph;
  // First as it is, since what is used for the first time is set up.
  for (bool captured : {false, true}) {
    Tape tape;
    const Context ctx = {.allocator = &allocator,
                         .comm = NewStream(Device::kCuda),
                         .tape = &tape};
    const Var y =
        Linear(ctx, tape.Input(x), weight, nullptr, Activation::kIdentity,
               {LinearSplit::kColumn, &tp, tokens});
    Synchronize(ctx.compute);
    if (captured) {
      MIMO_CUDA_CHECK(cudaStreamBeginCapture(RawStream(compute),
                                             cudaStreamCaptureModeRelaxed));
      WaitFor(ctx.comm, compute);  // what waits for it is captured too
    }
    tape.Backward(ctx, {{y.slot, dy}});
    if (captured)
      MIMO_CUDA_CHECK(cudaStreamEndCapture(RawStream(compute), &graph));
    Synchronize(ctx.compute);
  }
  const Order order(graph);
  MIMO_CUDA_CHECK(cudaGraphDestroy(graph));
  return order;
}

class LinearOverlapTest : public testing::Test {
 protected:
  void SetUp() override {
    const absl::Status status = CheckDevice(Device::kCuda);
    if (!status.ok()) GTEST_SKIP() << status.message();
  }
};

TEST_F(LinearOverlapTest, GathersTokensBesideDxAndReducesThemBesideDw) {
  const Order order = BackwardOf(/*tokens=*/true);
  const auto collectives = order.OfType(cudaGraphNodeTypeHost);
  ASSERT_EQ(collectives.size(), 2);
  auto [gather, reduce] =
      std::minmax(collectives[0], collectives[1],
                  [&](size_t a, size_t b) { return order.Before(a, b); });
  const auto dx = order.Beside(gather), dw = order.Beside(reduce);
  EXPECT_FALSE(dx.empty());
  EXPECT_FALSE(dw.empty());
  for (size_t kernel : dx) EXPECT_TRUE(order.Before(kernel, reduce));
  for (size_t kernel : dw) EXPECT_TRUE(order.Before(gather, kernel));
}

TEST_F(LinearOverlapTest, ReducesBesideDw) {
  const Order order = BackwardOf(/*tokens=*/false);
  const auto collectives = order.OfType(cudaGraphNodeTypeHost);
  ASSERT_EQ(collectives.size(), 1);
  const auto dw = order.Beside(collectives[0]);
  EXPECT_FALSE(dw.empty());
  // dx, which is what it reduces.
  EXPECT_LT(dw.size(), order.OfType(cudaGraphNodeTypeKernel).size());
}

}  // namespace
}  // namespace mimo
